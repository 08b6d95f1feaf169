"""Small dense factorisations of many matrices, safe on any number of cores.

XLA:CPU runs a batched LAPACK call on the thread pool that also runs the rest of the
program, and each such call waits for its share of threads. Two that do not depend on
each other wait for one another for ever on a machine of two cores (jax 0.10.2). So on
CPU every factorisation here is a loop over single matrices, which needs no second
thread, whatever a caller maps or runs beside it. Elsewhere it is one batched call.

On a GPU some operations are kernels of ours (`para_jax.linalg.gpu`). The plain
operation defines their result, runs everywhere else, and gives their derivative.

Traceable under `jit`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from para_jax.linalg import gpu, platforms, sharding

# cuSOLVER's batched Jacobi SVD stops at this size; beyond it, matrices go one by one.
_BATCHED_SVD_LIMIT = 32


def matmul(x: Float[Array, "... m k"], y: Float[Array, "... k n"]) -> Array:
    """Multiply matrices at full precision: not the default of accelerators.

    Example:
      >>> linalg = para_jax.linalg
      >>> linalg.matmul(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
      (2, 4)
    """
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def gram(x: Float[Array, "... _ _"], *, tall: bool) -> Float[Array, "... r r"]:
    """Return `x^T x` of `x [..., d, r]` if `tall`, else `x x^T` of `x [..., r, d]`.

    In float64 where JAX may, whatever the dtype of `x`, else in float32.
    """
    wide = jax.dtypes.canonicalize_dtype(float)

    def plain(x: Array) -> Array:
        x = x.astype(wide)
        return matmul(x.mT, x) if tall else matmul(x, x.mT)

    if not has_kernels(x):
        return plain(x)
    from para_jax.linalg.gpu import gram

    if x.shape[-1 if tall else -2] > gram.MOST:
        return plain(x)
    rows = x.reshape(-1, *x.shape[-2:])
    found = by_kernel(gram.gram, plain, rows, tall=tall)
    return found.reshape(*x.shape[:-2], *found.shape[-2:])


def applied(
    x: Float[Array, "... _ _"], w: Float[Array, "... _ _"], *, tall: bool, dtype: Any
) -> Float[Array, "... _ _"]:
    """Return `x @ w` for a factor `x [..., d, r]` if `tall`, else `w @ x`.

    Computed in float32, rounded as float32 is, unless `x`, `w` or the result is
    float64.

    Args:
      x: The factor.
      w: `[..., r, k]` if `tall`, else `[..., k, r]`.
      tall: Which side of `x` is the rank.
      dtype: Of the result.
    """
    is_wide = jnp.float64 in (x.dtype, w.dtype, jnp.dtype(dtype))
    if is_wide:
        return _product(lax.Precision.HIGHEST, jnp.float64, dtype, tall)(x, w)
    shape = (*x.shape[:-1], w.shape[-1]) if tall else (*w.shape[:-1], x.shape[-1])
    return platforms.by_platform(
        x, w, out=jax.ShapeDtypeStruct(shape, dtype), **_products(dtype, tall)
    )


@functools.cache
def _products(dtype: Any, tall: bool) -> dict[str, Callable[..., Array]]:
    """Return the ways to multiply in float32 by platform, always the same functions."""
    plain = _product(lax.Precision.HIGHEST, jnp.float32, dtype, tall)
    # Three products on the tensor cores give what one in float32 gives without them.
    preset = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    three = _product(preset, jnp.float32, dtype, tall)
    return {
        "cpu": plain,
        "cuda": on_gpu(three, plain),
        "tpu": functools.partial(one_by_one, plain),
        "default": plain,
    }


def _product(
    precision: lax.PrecisionLike, wide: Any, dtype: Any, tall: bool
) -> Callable[[Array, Array], Array]:
    def apply(x: Array, w: Array) -> Array:
        pair = (x, w) if tall else (w, x)
        pair = (y.astype(wide) for y in pair)
        return jnp.matmul(*pair, precision=precision).astype(dtype)

    return apply


def one_by_one(function: Callable[..., Array], *args: Array) -> Array:
    """Return `function` of each matrix of stacks, in a loop.

    A TPU's compiler unrolls a batch, and takes ten times as long for a few hundred.
    """
    # A loop over an axis that a mesh divides would move what it divides.
    if args[0].ndim == 2 or sharding.mesh_of(args) is not None:
        return function(*args)
    stack = args[0].shape[:-2]
    rows = [x.reshape(-1, *x.shape[-2:]) for x in args]
    found = lax.map(lambda row: function(*row), rows)
    return found.reshape(*stack, *found.shape[-2:])


def has_kernels(x: Array) -> bool:
    """Return whether `x` may be on a GPU, whole, in a program with float64."""
    wide = jax.dtypes.canonicalize_dtype(float) == jnp.float64
    return wide and on_one_gpu(x)


def on_one_gpu(x: Array) -> bool:
    """Return whether `x` may be on a GPU, whole, and kernels can be."""
    # On a mesh the compiler divides what it knows, and a kernel it does not know.
    on_one = jax.default_backend() == "gpu" and sharding.mesh_of(x) is None
    return on_one and gpu.exist()


def by_kernel(
    kernel: Any, plain: Callable[..., Any], *args: Array, **static: Any
) -> Any:
    """Return `plain(*args)`, by a kernel on an NVIDIA GPU.

    Run the plain operations there too where there is no kernel: see `made_by`.

    Args:
      kernel: A compiled function (`jax.jit`) of `args`.
      plain: Its definition in plain operations.
      *args: Arrays on one device.
      **static: The static arguments of `kernel`.
    """
    call = functools.partial(kernel, **static)
    found = made_by(lambda: on_gpu(call, plain)(*args), call, *args)
    return plain(*args) if found is None else found


def made_by(
    make: Callable[[], Any], kernel: functools.partial[Any], *trial: Any
) -> Any | None:
    """Return `make()`, or None if this JAX fails to trace or to lower its kernel.

    To find out, lower it by itself first: JAX keeps the result, so this takes some 50
    ms once a shape and 0.2 ms after that. Do not warn: the results of plain operations
    are the same, and only another JAX could change it. What a compiler says of a
    program that JAX did lower comes too late to be caught here.

    Args:
      make: Calls the kernel.
      kernel: A compiled function (`jax.jit`) with its static arguments.
      *trial: More arguments, of the kind that `make` calls it with.
    """
    args = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*kernel.args, *trial)]
    try:
        compiled: Any = kernel.func
        traced = compiled.trace(*args, **kernel.keywords)
        traced.lower(lowering_platforms=("cuda",))
        return make()
    except Exception:  # Of any kind: they are the faults of a compiler.
        return None


def on_gpu(kernel: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return `plain`, computed by `kernel` on an NVIDIA GPU."""

    @jax.custom_jvp
    def either(*args: Array) -> Any:
        return lax.platform_dependent(*args, cuda=kernel, default=plain)

    @either.defjvp
    def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> Any:
        return jax.jvp(plain, primals, tangents)

    return either


def qr_r(x: Float[Array, "N d r"]) -> Float[Array, "N r r"]:
    """Return the R factor of each `x = Q R`, filled up with zero rows if `d < r`."""
    r = _over_batch(lambda y: jnp.linalg.qr(y, mode="r"))(x)
    return jnp.pad(r, ((0, 0), (0, x.shape[-1] - r.shape[-2]), (0, 0)))


def eigh(x: Float[Array, "N r r"]) -> tuple[Float[Array, "N r"], Float[Array, "N r r"]]:
    """Return the eigenvalues, ascending, and eigenvectors of symmetric matrices.

    Example:
      >>> values, vectors = para_jax.linalg.eigh(jnp.diag(jnp.array([3.0, 2.0]))[None])
      >>> values.tolist(), vectors.shape
      ([[2.0, 3.0]], (1, 2, 2))
    """
    values, vectors = _over_batch(_lapack_eigh)(x)
    return values, vectors


def cholesky(x: Float[Array, "N r r"]) -> Float[Array, "N r r"]:
    """Return the upper `R` with `x = R^T R`; NaN for an indefinite matrix."""
    lower = _over_batch(lambda y: jnp.linalg.cholesky(y, symmetrize_input=False))(x)
    return lower.mT


def svd(
    x: Float[Array, "N m n"],
) -> tuple[Float[Array, "N m k"], Float[Array, "N k"], Float[Array, "N k n"]]:
    """Return `u, s, vt` of each matrix, `s` descending, `k = min(m, n)`.

    Accelerators take a square float64 matrix too large for their batched SVD through
    the eigenvectors of `x^T x`: the error of `s` is then 1e-8 of the largest.

    Example:
      >>> u, s, vt = para_jax.linalg.svd(jnp.eye(3, 2)[None] * 4)
      >>> u.shape, s.tolist(), vt.shape
      ((1, 3, 2), [[4.0, 4.0]], (1, 2, 2))
    """
    square = x.shape[-1] == x.shape[-2]
    fast = square and x.dtype == jnp.float64 and x.shape[-1] > _BATCHED_SVD_LIMIT
    return _over_batch(_lapack_svd, elsewhere=_svd_by_eigh if fast else None)(x)


def _lapack_eigh(x: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(x, symmetrize_input=False)
    return values, vectors


def _lapack_svd(x: Array) -> tuple[Array, Array, Array]:
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    return u, s, vt


def _svd_by_eigh(x: Array) -> tuple[Array, Array, Array]:
    _, v = _lapack_eigh(matmul(x.mT, x))
    image = matmul(x, v)
    s = jnp.linalg.norm(image, axis=0)  # More exact than the root of an eigenvalue.
    order = jnp.argsort(-s)
    s, v, image = s[order], v[:, order], image[:, order]
    return image / jnp.where(s > 0, s, 1)[None], s, v.mT


def _over_batch(
    one: Callable[[Array], Any], elsewhere: Callable[[Array], Any] | None = None
) -> Callable[[Array], Any]:
    """Return `one` over a leading axis: a loop on CPU, a batch on other platforms."""
    sequential = jax.custom_batching.sequential_vmap(one)

    # That has no derivative of its own. A loop that has one becomes a batch where a
    # caller maps it, so it serves for the derivative alone.
    @jax.custom_jvp
    def loop(x: Array) -> Any:
        return jax.vmap(sequential)(x)

    @loop.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> Any:
        return jax.jvp(lambda x: lax.map(one, x), primals, tangents)

    batch = jax.vmap(elsewhere or one)
    return lambda x: lax.platform_dependent(x, cpu=loop, default=batch)
