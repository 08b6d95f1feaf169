"""Gram matrices of tall factors in float64, each factor read once.

XLA would first write the factor out in float64, and read that: five times the bytes.
Here a program reads a piece of a factor, makes it float64 in registers, and adds up its
products on the tensor cores.

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

from para_jax.linalg.gpu.loads import widened

MOST = 128
"""The largest rank: the sums have to fit into the registers of one block."""

# Rows of a factor in one product, and the least that a block adds up.
_TILE = 32
_LEAST = 128
# Blocks that keep a large GPU busy.
_BLOCKS = 512


# One trace for all factors of one shape: a model has a handful of shapes.
@functools.partial(jax.jit, static_argnames=("tall", "interpret"))
def gram(
    x: Float[Array, "L _ _"], *, tall: bool, interpret: bool = False
) -> Float[Array, "L r r"]:
    """Return `x^T x` of `x [L, d, r]` if `tall`, else `x x^T` of `x [L, r, d]`.

    Args:
      x: Of any floating point dtype.
      tall: Which of its axes is the rank.
      interpret: Run it step by step, on any device.
    """
    depth, rank = x.shape[1:] if tall else x.shape[:0:-1]
    width = max(16, pl.next_power_of_2(rank))
    tiles = _tiles(x.shape[0], depth)
    blocks = pl.cdiv(depth, tiles * _TILE)
    parts = pl.pallas_call(
        functools.partial(_kernel, tall=tall, tiles=tiles, depth=depth, rank=rank),
        grid=(x.shape[0], blocks),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=pl.BlockSpec((1, 1, width, width), lambda i, j: (i, j, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], blocks, width, width), jnp.float64),
        compiler_params=triton.CompilerParams(
            num_warps={16: 2, 128: 8}.get(width, 4), num_stages=3
        ),
        interpret=interpret,
        name="gram",
    )(x)
    return parts.sum(1)[:, :rank, :rank]


def _tiles(rows: int, depth: int) -> int:
    """Return how many tiles one block adds up: few blocks, but enough of them."""
    wanted = rows * depth // _BLOCKS
    return pl.cdiv(min(max(wanted, _LEAST), 1024), _TILE)


def _kernel(
    x_ref: Any, sum_ref: Any, *, tall: bool, tiles: int, depth: int, rank: int
) -> None:
    row, block = (pl.program_id(i).astype(jnp.int64) for i in (0, 1))
    width = sum_ref.shape[-1]
    columns = jnp.arange(width) < rank
    # JAX 0.12 refuses a slice from a known start that ends beyond the array, masked or
    # not. The compiler makes a zero of this one before anything else.
    first = 0 * row

    def add(tile: Array, total: Array) -> Array:
        start = (block * tiles + tile) * _TILE
        inside = start + jnp.arange(_TILE) < depth
        depths, ranks = pl.ds(start, _TILE), pl.ds(first, width)
        at = (depths, ranks) if tall else (ranks, depths)
        mask = (inside, columns) if tall else (columns, inside)
        x = triton.load(
            x_ref.at[(row, *at)], mask=mask[0][:, None] & mask[1][None, :], other=0.0
        )
        x = widened(x, jnp.float64)
        return total + (jnp.dot(x.T, x) if tall else jnp.dot(x, x.T))

    sum_ref[0, 0] = lax.fori_loop(0, tiles, add, jnp.zeros((width, width), jnp.float64))
