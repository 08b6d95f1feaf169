"""The operations of a decomposition as a TPU's compiler takes them: in float32.

It unrolls a product of many matrices, and takes minutes for a few hundred of them. So
each batch is a loop over single products here, and singular values come from one loop
of rotations (`para_jax.linalg.jacobi`). The names are those of
`para_jax.linalg.factorize`, and so are the results.

No TPU ran them: they are compiled for TPUs, and computed on the CPU.

Traceable under `jit`.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from para_jax.linalg import factorize, jacobi


def matmul(x: Float[Array, "... m k"], y: Float[Array, "... k n"]) -> Array:
    """Multiply matrices at full precision."""
    return factorize.one_by_one(factorize.matmul, x, y)


def gram(x: Float[Array, "... _ _"], *, tall: bool) -> Float[Array, "... r r"]:
    """Return `x^T x` if `tall`, else `x x^T`, in float32."""
    return factorize.one_by_one(functools.partial(_gram, tall=tall), x)


def _gram(x: Float[Array, "... _ _"], *, tall: bool) -> Float[Array, "... r r"]:
    x = x.astype(jnp.float32)
    return factorize.matmul(x.mT, x) if tall else factorize.matmul(x, x.mT)


def eigh(x: Float[Array, "N r r"]) -> tuple[Float[Array, "N r"], Float[Array, "N r r"]]:
    """Return eigenvalues, descending, and eigenvectors of Gram matrices.

    One that rounding made negative comes out positive.
    """
    _, values, vt = jacobi.svd(x)
    return values, vt.mT


svd = jacobi.svd
qr_r = factorize.qr_r
