"""Small dense factorisations of many matrices, safe on any number of cores. Traced.

XLA:CPU runs a batched LAPACK call on the thread pool that also runs the rest of the
program, and each such call waits for its share of threads. Two that do not depend on
each other wait for one another for ever on a machine of two cores (jax 0.10.2). So on
CPU every factorisation here is a loop over single matrices, which needs no second
thread, whatever a caller maps or runs beside it. Elsewhere it is one batched call.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# cuSOLVER's batched Jacobi SVD stops at this size; beyond it, matrices go one by one.
_BATCHED_SVD_LIMIT = 32


def matmul(x: Float[Array, "... m k"], y: Float[Array, "... k n"]) -> Array:
    """Returns `x @ y` without the reduced precision that accelerators default to."""
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def qr_r(x: Float[Array, "N d r"]) -> Float[Array, "N r r"]:
    """Returns the R factor of each `x = Q R`, with zero rows below where `d < r`."""
    r = _over_batch(lambda y: jnp.linalg.qr(y, mode="r"))(x)
    return jnp.pad(r, ((0, 0), (0, x.shape[-1] - r.shape[-2]), (0, 0)))


def eigh(x: Float[Array, "N r r"]) -> tuple[Float[Array, "N r"], Float[Array, "N r r"]]:
    """Returns the eigenvalues, ascending, and eigenvectors of symmetric matrices."""
    values, vectors = _over_batch(_lapack_eigh)(x)
    return values, vectors


def svd(
    x: Float[Array, "N m n"],
) -> tuple[Float[Array, "N m k"], Float[Array, "N k"], Float[Array, "N k n"]]:
    """Returns `u, s, vt` of each matrix, `s` descending, `k = min(m, n)`.

    Accelerators take a square float64 matrix too large for their batched SVD through
    the eigenvectors of `x^T x`: the error of `s` is then 1e-8 of the largest.
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
    """Returns `one` over a leading axis: a loop on CPU, a batch on other platforms."""
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
