"""Spectra of many small products at once: Cholesky and one-sided Jacobi.

One block takes one pair of Gram matrices, and keeps it in registers from first to last:
a library would be called for the roots, their product, its eigenvectors and the
products with these, each time for a few microseconds of work on a few hundred small
matrices.

One-sided Jacobi rotates pairs of columns until all are orthogonal: then they are
singular vectors, as long as their singular values. It finds small singular values to
high relative accuracy, as no method does that goes through `x^T x` (Demmel and Veselic,
"Jacobi's method is more accurate than QR", 1992).

Half of all columns are rotated with the other half at once; `r - 1` times make a sweep,
in which each column has to meet each other one. A kernel can split, join and reshape
what is in registers, but not index it. So the columns are numbered by the elements of
GF(2^n), and after each time all numbers are multiplied by its generator `x`: the
neighbours `j` and `j + 1` become `j x^t` and `j x^t + x^t`, and `x^t` runs through all
elements but zero. As bits, that is a rotation and an exclusive or.

Traceable under `jit`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

MOST = 32
"""The largest rank: from here on a library's eigenvectors are as fast."""

# `x^n + x^tap + 1` generates GF(2^n): n by tap.
_TAPS = {4: 1, 5: 2}
# The largest cosine of two columns after which a sweep was the last: it squares it.
_ORTHOGONAL = 1e-6
_MOST_SWEEPS = 20
_TINY = 1e-30  # In float32, whose smallest is 1e-38.


@functools.partial(jax.jit, static_argnames=("resolution", "interpret"))
def spectra(
    gram_a: Float[Array, "L r r"],
    gram_b: Float[Array, "L r r"],
    *,
    resolution: float,
    interpret: bool = False,
) -> tuple[
    Float[Array, "L r"],
    Float[Array, "L r r"],
    Float[Array, "L r r"],
    Float[Array, " L"],
]:
    """Return `s`, `left` and `right` of products `a @ b`, known by Gram matrices.

    And the least share of a column's square that those before it leave. As
    `para_jax.linalg.core.of_grams`, in float64.

    Args:
      gram_a: `a^T a`.
      gram_b: `b b^T`.
      resolution: What counts as zero, relative to the largest `s`, a column.
      interpret: Run it step by step, on any device.
    """
    rows, rank, _ = gram_a.shape
    width = max(16, pl.next_power_of_2(rank))
    grow = [(0, 0), (0, width - rank), (0, width - rank)]
    square = pl.BlockSpec((1, width, width), lambda i: (i, 0, 0))
    shapes = [(rows, width), (rows, width, width), (rows, width, width), (rows,)]
    s, left, right, share = pl.pallas_call(
        functools.partial(_kernel, threshold=rank * resolution),
        grid=(rows,),
        in_specs=[square, square],
        out_specs=[
            pl.BlockSpec((1, width), lambda i: (i, 0)),
            square,
            square,
            pl.BlockSpec((1,), lambda i: (i,)),
        ],
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes],
        compiler_params=triton.CompilerParams(num_warps=width // 16, num_stages=1),
        interpret=interpret,
        name="spectra",
    )(jnp.pad(gram_a, grow), jnp.pad(gram_b, grow))
    return s[:, :rank], left[:, :rank, :rank].mT, right[:, :rank, :rank], share


def _kernel(
    gram_a_ref: Any,
    gram_b_ref: Any,
    s_ref: Any,
    left_ref: Any,
    right_ref: Any,
    share_ref: Any,
    *,
    threshold: float,
) -> None:
    (r_a, share_a), (r_b, share_b) = _root(gram_a_ref[0]), _root(gram_b_ref[0])
    share_ref[0] = jnp.minimum(share_a, share_b)
    core = jnp.dot(r_b, r_a.T)
    size = jnp.max(jnp.abs(core))
    size = jnp.where(size > 0, size, 1)
    core = core / size
    image = _orthogonal_columns(core)  # `core U`, so each column is `s v`.
    squares = jnp.sum(image * image, axis=0)
    s = lax.sqrt(squares)
    nonzero = s > threshold * jnp.max(s)
    root = jnp.where(nonzero, lax.rsqrt(jnp.where(nonzero, s, 1)), 0)
    over_s = root * root
    weight = root * lax.rsqrt(size)
    at = _places(squares)
    s_ref[0, at] = s * size
    left = jnp.dot(r_b.T, image) * (over_s * weight)[None, :]
    left_ref[0, at, :] = left.T
    right = jnp.dot(r_a.T, jnp.dot(core.T, image))
    right_ref[0, at, :] = (right * (over_s * over_s * weight)[None, :]).T


def _root(
    gram: Float[Array, "r r"],
) -> tuple[Float[Array, "r r"], Float[Array, ""]]:
    """Return the upper triangular `R` with `R^T R = gram`, and the least pivot.

    Its row is zero for a column that depends on those before it. A pivot is relative to
    its column's square; that of a column of zeros is none.
    """
    rank = gram.shape[0]
    index = jnp.arange(rank)
    noise = rank * float(jnp.finfo(gram.dtype).eps)

    def row_of(x: Array, j: Array) -> Array:
        return jnp.sum(jnp.where((index == j)[:, None], x, 0), axis=0)

    def step(j: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        rest, root, least = state
        row, whole = row_of(rest, j), row_of(gram, j)
        pivot, square = (jnp.max(jnp.where(index == j, x, 0)) for x in (row, whole))
        resolved = pivot > noise * square
        share = jnp.where(resolved, pivot / jnp.where(resolved, square, 1), 0)
        least = jnp.where(square == 0, least, jnp.minimum(least, share))
        over = lax.rsqrt(jnp.where(resolved, pivot, 1))
        row = jnp.where((index >= j) & resolved, row * over, 0)
        rest = rest - row[:, None] * row[None, :]
        return rest, jnp.where((index == j)[:, None], row[None, :], root), least

    start = gram, jnp.zeros_like(gram), jnp.ones((), gram.dtype)
    _, root, least = lax.fori_loop(0, rank, step, start)
    return root, least


def _orthogonal_columns(x: Float[Array, "r r"]) -> Float[Array, "r r"]:
    """Return `x J` with orthogonal columns, for an orthogonal `J`."""
    rank = x.shape[1]

    def rotate(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        left, right, worst = state
        left, right, cosine = _rotated(left, right)
        return *_next_pairs(left, right), jnp.maximum(worst, cosine)

    def sweep(state: tuple[Array, ...]) -> tuple[Array, ...]:
        left, right, _, done = state
        none = jnp.zeros(rank // 2, jnp.float32)
        left, right, worst = lax.fori_loop(0, rank - 1, rotate, (left, right, none))
        return left, right, jnp.max(worst), done + 1

    def unfinished(state: tuple[Array, ...]) -> Array:
        return (state[2] > _ORTHOGONAL) & (state[3] < _MOST_SWEEPS)

    start = (*_halves(x), jnp.float32(1), jnp.int32(0))
    left, right, _, _ = lax.while_loop(unfinished, sweep, start)
    return _interleaved(left, right)


def _rotated(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return each column of `x` and that of `y` made orthogonal, and their cosines.

    The angle is found in float32, whose error the next sweep repairs; but a rotation
    has to be one to all digits.
    """
    xx, yy, xy = (jnp.sum(z, 0).astype(jnp.float32) for z in (x * x, y * y, x * y))
    lengths = lax.sqrt(xx) * lax.sqrt(yy)
    both = lengths > _TINY
    cosine = jnp.where(both, jnp.abs(xy) / jnp.where(both, lengths, 1), 0)
    turned = both & (xy != 0)
    ratio = (yy - xx) / jnp.where(turned, 2 * xy, 1)
    sign = jnp.where(ratio >= 0, 1, -1).astype(jnp.float32)
    tangent = sign / (jnp.abs(ratio) + lax.sqrt(1 + ratio * ratio))
    tangent = jnp.where(turned, tangent, 0).astype(x.dtype)
    square = 1 + tangent * tangent
    cos = lax.rsqrt(square.astype(jnp.float32)).astype(x.dtype)
    cos = (cos * (1.5 - 0.5 * square * cos * cos))[None, :]  # A step of Newton's.
    sin = cos * tangent[None, :]
    return cos * x - sin * y, sin * x + cos * y, cosine


def _next_pairs(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the columns, numbered anew: `x` has the even numbers, `y` the odd."""
    (x_low, x_high), (y_low, y_high) = _halves(x), _halves(y)
    if _TAPS[x.shape[1].bit_length()] == 1:
        return _interleaved(x_low, y_low), _interleaved(y_high, x_high)
    x_high, y_high = _neighbours_swapped(x_high), _neighbours_swapped(y_high)
    return _interleaved(x_low, y_low), _interleaved(x_high, y_high)


def _halves(x: Array) -> tuple[Array, Array]:
    half = x.shape[1] // 2
    first, second = lax.split(x, (half, half), axis=1)
    return first, second


def _interleaved(x: Array, y: Array) -> Array:
    return jnp.stack([x, y], axis=-1).reshape(x.shape[0], -1)


def _neighbours_swapped(x: Array) -> Array:
    even, odd = lax.split(x.reshape(x.shape[0], -1, 2), (1, 1), axis=2)
    shape = x.shape[0], x.shape[1] // 2
    return _interleaved(odd.reshape(shape), even.reshape(shape))


def _places(values: Float[Array, " r"]) -> Array:
    """Return the place of each value in descending order."""
    index = jnp.arange(values.shape[0])
    mine, other = values[None, :], values[:, None]
    earlier = (other == mine) & (index[:, None] < index[None, :])
    return jnp.sum(((other > mine) | earlier).astype(jnp.int32), axis=0)
