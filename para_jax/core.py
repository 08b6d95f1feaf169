"""The `r x r` part of a decomposition: from Gram matrices or R factors to a spectrum.

With `a = Q_a R_a` and `b^T = Q_b R_b`, the update `a @ b` has the singular values of
the core `M = R_a R_b^T = U S V^T` (PARA, Eqs. 4-8), and `left = R_b^T V S^(-1/2)` and
`right = S^(-1/2) U^T R_a` make the balanced pair of Eq. 3 of `a` and `b`. Traced, all
modules of one rank as one batch.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from para_jax import linalg, sharding

RESOLUTION = float(np.finfo(np.float32).eps)
"""What float32 factors resolve, relative to the largest, a column."""

SIGNING = 512
"""So many of the first entries of a new row of `b` say which sign it has."""


class Core(NamedTuple):
    """The spectra of `L` modules, without their shapes.

    Attributes:
      s: Singular values, `[L, r]`, descending.
      left: `[L, r, r]`; a column is zero where `s` counts as zero.
      right: `[L, r, r]`; a row is zero where `s` counts as zero.
    """

    s: Array
    left: Array
    right: Array


def of_roots(r_a: Float[Array, "L r r"], r_b: Float[Array, "L r r"]) -> Core:
    """Returns the core of products `a @ b`, given the R factors of `a` and `b^T`."""
    u, s, vt = linalg.svd(linalg.matmul(r_a, r_b.mT))
    nonzero = s > tolerance(s, s.shape[-1])
    weight = jnp.where(nonzero, lax.rsqrt(jnp.where(nonzero, s, 1)), 0)
    left = linalg.matmul(r_b.mT, vt.mT) * weight[:, None, :]
    right = linalg.matmul(u.mT, r_a) * weight[:, :, None]
    return Core(s, left, right)


def of_grams(gram_a: Float[Array, "L r r"], gram_b: Float[Array, "L r r"]) -> Core:
    """Returns the core of products `a @ b`, given `a^T a` and `b b^T` in float64.

    On a GPU, small ranks go through one kernel (`para_jax.kernels.jacobi`).
    """

    def plain(gram_a: Array, gram_b: Array) -> tuple[Array, Array, Array]:
        roots = _cholesky_root(jnp.concatenate([gram_a, gram_b]))
        return tuple(of_roots(*jnp.split(roots, 2)))

    if not linalg.has_kernels(gram_a):
        return Core(*plain(gram_a, gram_b))
    from para_jax.kernels import jacobi

    if gram_a.shape[-1] > jacobi.MOST:
        return Core(*plain(gram_a, gram_b))

    def kernel(gram_a: Array, gram_b: Array) -> tuple[Array, Array, Array]:
        return jacobi.spectra(gram_a, gram_b, resolution=RESOLUTION)

    return Core(*linalg.on_gpu(kernel, plain)(gram_a, gram_b))


def scaled(core: Core, scale: Float[Array, " L"]) -> Core:
    """Returns the core of `scale` times each product."""
    root = jnp.sqrt(jnp.abs(scale))
    return Core(
        s=core.s * jnp.abs(scale)[:, None],
        left=core.left * (jnp.sign(scale) * root)[:, None, None],
        right=core.right * root[:, None, None],
    )


def tolerance(s: Array, rank: int) -> Array:
    """Returns the value up to which the `s` of a module counts as zero, `[..., 1]`.

    `r * eps * s_1` with float32's eps: what float32 factors resolve. The usual
    `max(m, n) * eps` would drop genuine values of graded factors.
    """
    return rank * RESOLUTION * s[..., :1]


def root_of_gram(
    gram: Float[Array, "N r r"],
) -> tuple[Float[Array, "N r r"], Float[Array, "N r r"]]:
    """Returns `R` with `R^T R = gram`, and its inverse where that is not noise.

    By eigenvectors, so that a dependent column does no harm.
    """
    unit, lengths = _unit_columns(gram)
    values, vectors = linalg.eigh(unit)
    floor = gram.shape[-1] * jnp.finfo(gram.dtype).eps  # The largest is 1 or more.
    values = jnp.sqrt(jnp.maximum(values, floor))
    root = values[:, :, None] * vectors.mT * lengths[:, None, :]
    safe = jnp.where(lengths > 0, lengths, 1)
    whiten = vectors / values[:, None, :] / safe[:, :, None]
    return sharding.replicated((root, whiten))


def _cholesky_root(gram: Float[Array, "N r r"]) -> Float[Array, "N r r"]:
    """Returns `R` with `R^T R = gram`, the fastest way that works for all."""
    unit, lengths = _unit_columns(gram)
    root = linalg.cholesky(unit) * lengths[:, None, :]
    independent = jnp.isfinite(root).all()
    return lax.cond(independent, lambda: root, lambda: root_of_gram(gram)[0])


def _unit_columns(
    gram: Float[Array, "N r r"],
) -> tuple[Float[Array, "N r r"], Float[Array, "N r"]]:
    """Returns the Gram matrix of the columns brought to unit length, and their lengths.

    An error is then relative to each column's own length: graded factors lose nothing.
    """
    lengths = jnp.sqrt(jnp.diagonal(gram, axis1=-2, axis2=-1))
    safe = jnp.where(lengths > 0, lengths, 1)
    return gram / (safe[:, :, None] * safe[:, None, :]), lengths
