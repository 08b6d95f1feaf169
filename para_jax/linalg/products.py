"""From factors to the cores of their products: by QR, by Gram matrices, or checked.

All functions take factors `a [*stack, m, r]` and `b [*stack, r, n]` of one rank, and
return the cores of all `L` kernels in one batch. `numpy_products.py` is the counterpart
for factors in host memory.

A Gram product costs a tenth of a QR, or less. With its columns scaled to unit length,
its rounding `E` changes the root `R` to `(I + F) R`, where `|F| <= |E| / lambda` for
the smallest eigenvalue `lambda` of that Gram matrix. The core `M = R_a R_b^T` becomes
`(I + F_a) M (I + F_b^T)`, so no singular value changes by more than the factor
`1 + |F_a| + |F_b|`, however much the two factors cancel. The pivots of the Cholesky
factor, a by-product, tell when `lambda` is small.

Traceable under `jit`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from para_jax._adapters.choices import Method as Method
from para_jax.linalg import core, factorize, platforms, sharding, tpu
from para_jax.linalg.core import Core

Way = Literal["auto", "mesh", "qr", "gram", "checked"]
"""The way that a program takes.

`auto` and `mesh`, for factors divided over devices, are decided by the platform that it
is lowered for. `checked` is `gram`, or `qr` if that loses digits.
"""

DEPENDENT = 1e-9
"""A pivot below this share of its column's square makes rounding, `r * eps`, matter."""

Factors = Sequence[Array]


def cores(a: Factors, b: Factors, scale: Float[Array, " L"], way: Way) -> Core:
    """Return the cores of `scale * a @ b`, in the dtype of `scale`.

    Computed in float64 where JAX may, but on a TPU. In float32 the factors are brought
    near 1 first: squares would leave its range.
    """
    args = [*a], [*b], scale
    if way == "auto":
        return platforms.by_platform(
            *args,
            out=_shapes(a, scale),
            cpu=_by_qr,
            cuda=_on_cuda,
            tpu=_on_tpu,
            default=_on_accelerator,
        )
    if way == "mesh":
        return lax.platform_dependent(*args, tpu=_on_tpus, default=_by_grams)
    ways = {"qr": _by_qr, "gram": _by_grams, "checked": _checked}
    return ways[way](*args)


def _shapes(a: Factors, scale: Float[Array, " L"]) -> Core:
    rank = a[0].shape[-1]
    shapes = (rank,), (rank, rank), (rank, rank)
    return Core(*(jax.ShapeDtypeStruct((len(scale), *x), scale.dtype) for x in shapes))


def _by_qr(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    return _scaled(by_qr, a, b, scale)


def _by_grams(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    return _scaled(by_grams, a, b, scale)


def _checked(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    return _scaled(checked, a, b, scale)


def _on_accelerator(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    is_wide = scale.dtype == jnp.float64
    return _scaled(checked if is_wide else by_grams, a, b, scale)


def _on_cuda(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    if scale.dtype == jnp.float64:
        return _scaled(checked, a, b, scale)
    # There `vmap` traces the choice once more, in the precision of its caller.
    if any(platforms.is_placed(x) for x in (*a, *b)):
        return _scaled(by_grams, a, b, scale)
    return in_float64(a, b, scale)


@jax.custom_jvp
def in_float64(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    """Return the cores by Gram matrices in float64, rounded to float32 at the end.

    In a program without float64 too: one pass takes half the time of two in float32. Of
    float32 factors it loses less than a rounding of theirs, so there is nothing to
    check. The derivative is that of `qr` in float32: JAX's rules run in the precision
    of a later moment, and the second pass of `gram` loses it in the differences of all
    but equal eigenvalues.
    """
    shapes = _shapes(a, scale)
    with jax.enable_x64(True):
        return platforms.by_platform(
            *([*a], [*b], scale),
            out=shapes,
            cpu=_rounded,
            cuda=_rounded,
            tpu=_rounded,
            default=_rounded,
        )


def _rounded(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    """Return the cores in float32, those beyond its range as its largest number."""
    found = core.scaled(by_grams(a, b), scale.astype(jnp.float64))
    largest = float(jnp.finfo(jnp.float32).max)
    return Core(*(jnp.clip(x, -largest, largest).astype(jnp.float32) for x in found))


@in_float64.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Core, Core]:
    return in_float64(*primals), jax.jvp(_by_qr, primals, tangents)[1]


def _by_jacobi(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    """Return the cores by Gram matrices, computed in float32."""
    find = functools.partial(by_grams, ops=tpu)
    found = _scaled(find, a, b, scale.astype(jnp.float32))
    return Core(*(x.astype(scale.dtype) for x in found))


def _with_derivative_of(
    other: Callable[[Factors, Factors, Array], Core],
    way: Callable[[Factors, Factors, Array], Core],
) -> Callable[[Factors, Factors, Array], Core]:
    """Return a way with the derivative of another.

    Loops of unknown length have none backwards. On any platform: JAX differentiates all
    branches of a choice.
    """
    both = jax.custom_jvp(way)

    @both.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Core, Core]:
        return both(*primals), jax.jvp(other, primals, tangents)[1]

    return both


_on_tpu = _with_derivative_of(_by_qr, _by_jacobi)
# A QR would gather factors that are divided over devices.
_on_tpus = _with_derivative_of(_by_grams, _by_jacobi)


def _scaled(
    find: Callable[[Factors, Factors], Core],
    a: Factors,
    b: Factors,
    scale: Float[Array, " L"],
) -> Core:
    if scale.dtype == jnp.float64:
        return core.scaled(find(a, b), scale)
    a, e_a = _near_one(a)
    b, e_b = _near_one(b)
    return core.shifted(core.scaled(find(a, b), scale), e_a, e_b)


def by_qr(a: Factors, b: Factors) -> Core:
    """Return the cores through a QR of each factor, with relative roundings only."""
    wide = jax.dtypes.canonicalize_dtype(float)
    roots = [
        jnp.concatenate([factorize.qr_r(_rows(x).astype(wide)) for x in tall])
        for tall in (a, [x.mT for x in b])
    ]
    return core.of_roots(*roots)


def by_grams(a: Factors, b: Factors, ops: Any = factorize) -> Core:
    """Return the cores through `a^T a` and `b b^T`.

    Args:
      a: Factors.
      b: Their counterparts.
      ops: The module of the operations of a platform.
    """
    gram_a, gram_b = _grams(a, ops, tall=True), _grams(b, ops, tall=False)
    if gram_a.dtype == jnp.float64:
        return core.of_grams(gram_a, gram_b)[0]
    roots, whiten = core.first_root_of_gram(jnp.concatenate([gram_a, gram_b]), ops)
    # A factor times `whiten` is almost orthogonal; a direction too weak for the first
    # estimate is at least enlarged. A second pass finds the rest as exactly as QR.
    tall = [x.astype(jnp.float32) for x in (*a, *(x.mT for x in b))]
    ends = np.cumsum([math.prod(x.shape[:-2]) for x in tall])[:-1]
    pairs = zip(tall, jnp.split(whiten, ends), strict=True)
    again = _grams([_times(x, w, ops) for x, w in pairs], ops, tall=True)
    # Triangular again, so that graded columns stay graded in what follows.
    roots = ops.qr_r(ops.matmul(core.root_of_gram(again, ops), roots))
    root_a, root_b = jnp.split(roots, 2)
    return core.of_roots(root_a, root_b, ops)


@jax.custom_jvp
def checked(a: Factors, b: Factors) -> Core:
    """Return the cores by Gram matrices in float64, by QR if one is nearly singular.

    Also within `jax.vmap`, where a condition would become a choice between two results:
    the mapped axis becomes one more stack axis. The derivative is that of `by_grams`.
    """
    rank = a[0].shape[-1]
    found = zip(*_in_stacks(a, b), strict=True)
    s, left, right = (jnp.concatenate([y.reshape(-1, rank) for y in x]) for x in found)
    return Core(s, left.reshape(-1, rank, rank), right.reshape(-1, rank, rank))


@checked.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Core, Core]:
    return checked(*primals), jax.jvp(by_grams, primals, tangents)[1]


@jax.custom_batching.custom_vmap
def _in_stacks(a: Factors, b: Factors) -> list[Core]:
    """Return `checked(a, b)` for each pair of arrays, with its stack axes."""
    found, share = core.of_grams(
        _grams(a, factorize, tall=True), _grams(b, factorize, tall=False)
    )
    # One condition for all: a batch with one bad factor takes the slow way as a whole.
    safe = (share > DEPENDENT).all()  # Not where a share is NaN.
    found = lax.cond(safe, lambda *_: found, _one_by_one, a, b)
    ends = np.cumsum([math.prod(x.shape[:-2]) for x in a])[:-1]
    parts = zip(*(jnp.split(x, ends) for x in found), strict=True)
    return [
        Core(*(y.reshape(*x.shape[:-2], *y.shape[1:]) for y in part))
        for x, part in zip(a, parts, strict=True)
    ]


@_in_stacks.def_vmap
def _(
    axis_size: int, in_batched: Sequence[Any], a: Factors, b: Factors
) -> tuple[Any, Any]:
    def mapped(x: Array, is_batched: bool) -> Array:
        return x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))

    result = _in_stacks(*jax.tree.map(mapped, (a, b), tuple(in_batched)))
    return result, jax.tree.map(lambda _: True, result)


def _one_by_one(a: Factors, b: Factors) -> Core:
    """Return the cores by QR, one matrix at a time.

    A program reserves memory for both branches of a condition, so this one, seldom
    taken, uses little.
    """

    def roots(factors: Factors, root: Callable[[Array], Array]) -> Array:
        return jnp.concatenate([lax.map(root, _rows(x)) for x in factors])

    def root(x: Float[Array, "d r"]) -> Float[Array, "r r"]:
        return factorize.qr_r(x[None].astype(float))[0]

    return core.of_roots(roots(a, root), roots(b, lambda x: root(x.T)))


def _near_one(factors: Factors) -> tuple[list[Array], Int[Array, " L"]]:
    """Return the factors times `2^-e`, in float32, and the even `e` of each kernel."""
    factors = [x.astype(jnp.float32) for x in factors]
    exponents = [sharding.replicated(_exponent(x)) for x in factors]
    pairs = zip(factors, exponents, strict=True)
    scaled = [core.times_power(x, -e) for x, e in pairs]
    return scaled, jnp.concatenate([e.reshape(-1) for e in exponents])


def _exponent(x: Float[Array, "*stack d r"]) -> Int[Array, "*stack"]:
    """Return even `e` with the entries of each `x` below `2^(e + 2)`."""
    # Even, so that the root of the power is exact. It has no derivative, as it cancels.
    _, exponent = jnp.frexp(jnp.abs(lax.stop_gradient(x)).max((-1, -2)))
    return exponent // 2 * 2


def _grams(factors: Factors, ops: Any, *, tall: bool) -> Float[Array, "L r r"]:
    found = [sharding.replicated(ops.gram(x, tall=tall)) for x in factors]
    return jnp.concatenate([_rows(x) for x in found])


def _times(x: Float[Array, "... d r"], w: Float[Array, "L r r"], ops: Any) -> Array:
    w = sharding.replicated(w.reshape(*x.shape[:-2], *w.shape[-2:]))
    return ops.matmul(x, w)


def _rows(x: Float[Array, "*stack d r"]) -> Float[Array, "L d r"]:
    return x.reshape(-1, *x.shape[-2:])
