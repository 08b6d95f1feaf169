"""The `r x r` part of a decomposition: from Gram matrices or R factors to a spectrum.

With `a = Q_a R_a` and `b^T = Q_b R_b`, the update `a @ b` has the singular values of
the core `M = R_a R_b^T = U S V^T` (PARA, Eqs. 4-8), and `left = R_b^T V S^(-1/2)` and
`right = S^(-1/2) U^T R_a` make the balanced pair of Eq. 3 of `a` and `b`. All modules
of one rank are one batch.

Traceable under `jit`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from para_jax.linalg import factorize, sharding, tolerances
from para_jax.linalg.tolerances import RESOLUTION


class Core(NamedTuple):
    """The spectra of `L` modules, without their shapes; traced or NumPy arrays.

    Attributes:
      s: Singular values, `[L, r]`, descending.
      left: `[L, r, r]`; a column is zero where `s` counts as zero.
      right: `[L, r, r]`; a row is zero where `s` counts as zero.
    """

    s: Any
    left: Any
    right: Any


def of_roots(
    r_a: Float[Array, "L r r"], r_b: Float[Array, "L r r"], ops: Any = factorize
) -> Core:
    """Return the core of products `a @ b`, given the R factors of `a` and `b^T`.

    Args:
      r_a: That of `a`.
      r_b: That of `b^T`.
      ops: The module of the operations of a platform.
    """
    return _without_noise(_of_roots(r_a, r_b, ops), _norms(r_a), _norms(r_b))


def of_grams(
    gram_a: Float[Array, "L r r"], gram_b: Float[Array, "L r r"]
) -> tuple[Core, Float[Array, " L"]]:
    """Return the core of products `a @ b`, given `a^T a` and `b b^T` in float64.

    And the independence of the columns: the least share of a column's square outside
    of the span of those before it, the smallest of both factors. It is NaN or 0 for
    dependent columns.

    On a GPU, small ranks go through one kernel (`para_jax.linalg.gpu.jacobi`).
    """

    def plain(gram_a: Array, gram_b: Array) -> tuple[Array, ...]:
        roots, shares = _cholesky_root(jnp.concatenate([gram_a, gram_b]))
        share = jnp.minimum(*jnp.split(shares, 2))
        return *_of_roots(*jnp.split(roots, 2)), share

    *parts, share = _spectra(plain, gram_a, gram_b)
    # Eigenvectors of a Gram matrix are exact to `r` roundings, unlike a QR.
    lengths = map(_lengths, (gram_a, gram_b))
    return _without_noise(Core(*parts), *lengths, least=gram_a.shape[-1]), share


def _spectra(
    plain: Callable[..., tuple[Array, ...]], gram_a: Array, gram_b: Array
) -> tuple[Array, ...]:
    """Return `plain(gram_a, gram_b)`, by a GPU kernel if one exists."""
    if not factorize.has_kernels(gram_a):
        return plain(gram_a, gram_b)
    # Imported late: Pallas takes longer to import than a small adapter to compress.
    from para_jax.linalg.gpu import jacobi

    if gram_a.shape[-1] > jacobi.MOST:
        return plain(gram_a, gram_b)
    return factorize.by_kernel(
        jacobi.spectra, plain, gram_a, gram_b, resolution=RESOLUTION
    )


def _of_roots(
    r_a: Float[Array, "L r r"], r_b: Float[Array, "L r r"], ops: Any = factorize
) -> Core:
    u, s, vt = ops.svd(ops.matmul(r_a, r_b.mT))
    nonzero = s > tolerances.floor(s[..., :1], s.shape[-1])
    # The inner `where` keeps the derivative finite at zeros, where NaN would spread.
    weight = jnp.where(nonzero, lax.rsqrt(jnp.where(nonzero, s, 1)), 0)
    left = ops.matmul(r_b.mT, vt.mT) * weight[:, None, :]
    right = ops.matmul(u.mT, r_a) * weight[:, :, None]
    return Core(s, left, right)


def _without_noise(
    core: Core,
    norms_a: Float[Array, "L r"],
    norms_b: Float[Array, "L r"],
    *,
    least: int = 1,
) -> Core:
    """Set noise to zero: components lost where the `r` parts of a product cancel.

    A module with NaN or infinity becomes NaN.
    """
    norms = (norms_a * norms_b).sum(-1, keepdims=True)
    s = jnp.where(jnp.isfinite(norms), core.s, jnp.nan)
    cancelled = tolerances.cancelled(s, norms, least=least)
    return Core(
        s=jnp.where(cancelled, 0, s),
        left=jnp.where(cancelled[:, None, :], 0, core.left),
        right=jnp.where(cancelled[:, :, None], 0, core.right),
    )


def _norms(root: Float[Array, "L r r"]) -> Float[Array, "L r"]:
    """Return the norms of the columns, even if their squares overflow."""
    largest = jnp.abs(root).max(-2, keepdims=True)
    unit = root / jnp.where(largest > 0, largest, 1)
    return largest[:, 0] * jnp.linalg.norm(unit, axis=-2)


def scaled(core: Core, scale: Float[Array, " L"]) -> Core:
    """Return the core of `scale` times each product."""
    root = jnp.sqrt(jnp.abs(scale))  # Half of the scale each, so factors stay balanced.
    return Core(
        s=core.s * jnp.abs(scale)[:, None],
        left=core.left * (jnp.sign(scale) * root)[:, None, None],
        right=core.right * root[:, None, None],
    )


def shifted(core: Core, e_a: Int[Array, " L"], e_b: Int[Array, " L"]) -> Core:
    """Return the core of `2^e_a a @ 2^e_b b`, for even exponents.

    A value beyond the dtype becomes its largest.
    """
    s = times_power(core.s, e_a + e_b)
    # `a_hat = a @ left`, and `a` itself still has its `2^e_a`.
    shift = (e_b - e_a) // 2
    return Core(
        s=jnp.minimum(s, jnp.finfo(s.dtype).max),
        left=times_power(core.left, shift),
        right=times_power(core.right, -shift),
    )


def times_power(x: Array, exponent: Int[Array, "*stack"]) -> Array:
    """Return `x * 2^exponent`, in two steps: the power itself may be out of range."""
    half = exponent // 2
    for e in (half, exponent - half):
        power = jnp.ldexp(jnp.ones((), x.dtype), e)
        x = x * power.reshape(*power.shape, *[1] * (x.ndim - power.ndim))
    return x


def root_of_gram(
    gram: Float[Array, "N r r"], ops: Any = factorize
) -> Float[Array, "N r r"]:
    """Return `R` with `R^T R = gram`, zero in directions of noise.

    By eigenvectors, since a Cholesky factor of dependent columns does not exist.
    """
    values, vectors, lengths = _eigen(gram, ops)
    # An eigenvalue's rounding is relative to the largest, up to `r` of unit columns.
    largest = values.max(-1, keepdims=True)
    kept = jnp.where(values > _floor(gram) * largest, values, 0)
    root = jnp.sqrt(kept)[:, :, None] * vectors.mT * lengths[:, None, :]
    return sharding.replicated(root)


def first_root_of_gram(
    gram: Float[Array, "N r r"], ops: Any = factorize
) -> tuple[Float[Array, "N r r"], Float[Array, "N r r"]]:
    """Return `R` with `R^T R = gram`, almost, and its inverse.

    Directions of noise are enlarged, so that a second pass over the factor finds them.
    """
    values, vectors, lengths = _eigen(gram, ops)
    values = jnp.sqrt(jnp.maximum(values, _floor(gram)))
    root = values[:, :, None] * vectors.mT * lengths[:, None, :]
    safe = jnp.where(lengths > 0, lengths, 1)
    whiten = vectors / values[:, None, :] / safe[:, :, None]
    return sharding.replicated((root, whiten))


def _cholesky_root(
    gram: Float[Array, "N r r"],
) -> tuple[Float[Array, "N r r"], Float[Array, " N"]]:
    """Return `R` with `R^T R = gram`, by Cholesky if all have a factor.

    And the smallest square of a diagonal entry, relative to its column's.
    """
    # One condition for the whole batch: a choice for each matrix would compute both.
    unit, lengths = _unit_columns(gram)
    cholesky = factorize.cholesky(unit)
    shares = jnp.square(jnp.diagonal(cholesky, axis1=-2, axis2=-1)).min(-1)
    root = cholesky * lengths[:, None, :]
    # Of dependent columns a pivot is rounding, of either sign: whether a factor exists
    # at all is then up to the processor. Not where a share is NaN.
    independent = (shares > _floor(gram)).all()
    return lax.cond(independent, lambda: root, lambda: root_of_gram(gram)), shares


def _eigen(gram: Float[Array, "N r r"], ops: Any) -> tuple[Array, Array, Array]:
    unit, lengths = _unit_columns(gram)
    return *ops.eigh(unit), lengths


def _floor(gram: Float[Array, "N r r"]) -> float:
    """Return the rounding of eigenvalues of a matrix with a unit diagonal."""
    return gram.shape[-1] * float(jnp.finfo(gram.dtype).eps)


def _unit_columns(
    gram: Float[Array, "N r r"],
) -> tuple[Float[Array, "N r r"], Float[Array, "N r"]]:
    """Return the Gram matrix of unit columns, and the lengths of the columns.

    An error is then relative to each column's own length: graded factors lose nothing.
    A column of zeros counts as independent of all others.
    """
    lengths = _lengths(gram)
    safe = jnp.where(lengths > 0, lengths, 1)
    unit = gram / (safe[:, :, None] * safe[:, None, :])
    missing = jnp.where(lengths > 0, 0, 1).astype(gram.dtype)[:, :, None]
    return unit + missing * jnp.eye(gram.shape[-1], dtype=gram.dtype)[None], lengths


def _lengths(gram: Float[Array, "N r r"]) -> Float[Array, "N r"]:
    return jnp.sqrt(jnp.diagonal(gram, axis1=-2, axis2=-1))
