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

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from para_jax.linalg import core, factorize, sharding
from para_jax.linalg.core import Core

DEPENDENT = 1e-9
"""A pivot below this share of its column's square makes rounding, `r * eps`, matter."""

Factors = Sequence[Array]


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


def near_one(factors: Factors) -> tuple[list[Array], Int[Array, " L"]]:
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
