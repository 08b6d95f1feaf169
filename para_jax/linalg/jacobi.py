"""Singular values and vectors of many small matrices, in one loop of plain operations.

A compiler for TPUs takes minutes over its own SVD of a few hundred matrices. This is a
loop whose body has few operations, whatever the rank, so it compiles within seconds.

One-sided Jacobi rotates pairs of columns until all are orthogonal: then they are left
singular vectors, as long as their singular values (Demmel and Veselic, "Jacobi's method
is more accurate than QR", 1992). Half of all columns meet the other half at once. Then
all but the first move on by one place, as in a tournament, so that `n - 1` rounds, a
sweep, make each pair meet once, and bring every column back to its place.

The matrices are the last axis, which is the vector axis of a TPU: a rotation is then a
few multiplications of whole vectors, and a column moves as a block.

Traceable under `jit`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# The largest cosine of two columns after which a sweep was the last: it squares it.
_ORTHOGONAL = 1e-5
_MOST_SWEEPS = 30


class _State(NamedTuple):
    """The columns between two rounds.

    Attributes:
      rounds: The number of rounds so far.
      x: The columns that meet those of `y`.
      y: The other half.
      unfinished: Whether a pair of this sweep was not yet orthogonal.
    """

    rounds: Int[Array, ""]
    x: Float[Array, "h d N"]
    y: Float[Array, "h d N"]
    unfinished: Bool[Array, ""]


def svd(
    x: Float[Array, "N m n"],
) -> tuple[Float[Array, "N m n"], Float[Array, "N n"], Float[Array, "N n n"]]:
    """Return `u, s, vt` of each matrix, `m >= n`, `s` descending.

    A column of `u` is zero where `s` is. A matrix with NaN or infinity becomes NaN, and
    harms no other.
    """
    m, n = x.shape[1:]
    size = jnp.abs(x).max((1, 2))  # Squares would leave the range of float32.
    size = jnp.where(jnp.isfinite(size), jnp.where(size > 0, size, 1), jnp.nan)
    columns = (x / size[:, None, None]).transpose(2, 1, 0)
    v = jnp.broadcast_to(jnp.eye(n, dtype=x.dtype)[..., None], (n, n, x.shape[0]))
    columns = _orthogonal(jnp.concatenate([columns, v], axis=1), m)
    s = jnp.sqrt(_dot(columns[:, :m], columns[:, :m]))
    place = _places(s)
    columns, s = _sorted(columns, place), _sorted(s, place)
    u = columns[:, :m] / jnp.where(s > 0, s, 1)[:, None]
    vt = columns[:, m:].transpose(2, 0, 1)
    return u.transpose(2, 1, 0), (s * size[None]).T, vt


def _orthogonal(columns: Float[Array, "c d N"], m: int) -> Float[Array, "c d N"]:
    """Return the columns made orthogonal in their first `m` rows."""
    count = columns.shape[0]
    half = (count + 1) // 2
    sweep = 2 * half - 1
    # A column of zeros makes their number even, and is never turned.
    columns = jnp.pad(columns, ((0, 2 * half - count), (0, 0), (0, 0)))

    def turn(state: _State) -> _State:
        x, y, found = _rotated(state.x, state.y, m)
        earlier = state.unfinished & (state.rounds % sweep != 0)
        return _State(state.rounds + 1, *_next_pairs(x, y), found | earlier)

    def goes_on(state: _State) -> Bool[Array, ""]:
        within = state.rounds % sweep != 0
        return within | (state.unfinished & (state.rounds < _MOST_SWEEPS * sweep))

    # True, and within `shard_map` as different on each device as the columns are.
    unfinished = (columns[0, 0] == 0).any() | True
    start = _State(jnp.int32(0), columns[:half], columns[half:], unfinished)
    end = lax.while_loop(goes_on, turn, start)
    return jnp.concatenate([end.x, end.y])[:count]


def _rotated(
    x: Float[Array, "h d N"], y: Float[Array, "h d N"], m: int
) -> tuple[Float[Array, "h d N"], Float[Array, "h d N"], Bool[Array, ""]]:
    """Return each column of `x` and that of `y` made orthogonal, and if any was not."""
    xx, yy, xy = (_dot(p[:, :m], q[:, :m]) for p, q in ((x, x), (y, y), (x, y)))
    lengths = lax.sqrt(xx) * lax.sqrt(yy)
    # What is orthogonal to rounding stays as it is: a rotation rounds too.
    turned = jnp.abs(xy) > jnp.finfo(x.dtype).eps * lengths
    ratio = (yy - xx) / jnp.where(turned, 2 * xy, 1)
    sign = jnp.where(ratio >= 0, 1, -1).astype(x.dtype)
    tangent = sign / (jnp.abs(ratio) + lax.sqrt(1 + ratio * ratio))
    tangent = jnp.where(turned, tangent, 0)
    square = 1 + tangent * tangent
    cos = lax.rsqrt(square)
    # A step of Newton's, since a reciprocal root of an accelerator is not exact.
    cos = (cos * (1.5 - 0.5 * square * cos * cos))[:, None]
    sin = cos * tangent[:, None]
    found = (jnp.abs(xy) > _ORTHOGONAL * lengths).any()
    return cos * x - sin * y, sin * x + cos * y, found


def _next_pairs(
    x: Float[Array, "h d N"], y: Float[Array, "h d N"]
) -> tuple[Float[Array, "h d N"], Float[Array, "h d N"]]:
    """Return the halves of the next round."""
    if len(x) == 1:
        return x, y
    return jnp.concatenate([x[:1], y[:1], x[1:-1]]), jnp.concatenate([y[1:], x[-1:]])


def _places(s: Float[Array, "n N"]) -> Int[Array, "n N"]:
    """Return the place of each value in descending order; NaN stays where it is."""
    index = jnp.arange(s.shape[0])[:, None]
    mine, other = s[None], s[:, None]
    earlier = (index < index.T)[..., None] & ~(mine > other)
    return ((other > mine) | earlier).sum(0, dtype=jnp.int32)


def _sorted(x: Float[Array, "n *d N"], place: Int[Array, "n N"]) -> Array:
    """Return the columns in their places: a gather would take longer to compile."""
    place = place.reshape(place.shape[0], *[1] * (x.ndim - 2), place.shape[1])

    def column(index: Int[Array, ""]) -> Array:
        return jnp.where(place == index, x, 0).sum(0)

    return lax.map(column, jnp.arange(x.shape[0], dtype=jnp.int32))


def _dot(x: Float[Array, "h m N"], y: Float[Array, "h m N"]) -> Float[Array, "h N"]:
    return (x * y).sum(1)
