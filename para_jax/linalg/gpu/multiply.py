"""Products of the matrices of two stacks, one of them tall or wide.

A library tries tens of kernels for every shape before it takes one, which is as fast.

Traceable under `jit`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from para_jax.linalg.gpu.loads import widened

MOST = 64
"""The largest rank: beyond it a library's products are as fast."""

# The entries that a block reads, and the least along the long axis.
_ENTRIES = 2048
_LEAST = 32


@functools.partial(jax.jit, static_argnames=("tall", "dtype", "interpret"))
def multiply(
    first: Int[Array, "1"],
    w: Float[Array, "L _ _"],
    x: Float[Array, "N _ _"],
    *,
    tall: bool,
    dtype: Any,
    interpret: bool = False,
) -> Float[Array, "N _ _"]:
    """Return `x_i @ w[first + i]` for each row of a stack if `tall`, else the reverse.

    In three products of TF32, which give what one in float32 would.

    Args:
      first: The row of `w` that is the first of `x`'s.
      w: `[L, r, k]` if `tall`, else `[L, k, r]`, in float32.
      x: `[N, d, r]` if `tall`, else `[N, r, d]`, of any floating point dtype but
        float64.
      tall: Which axis of `x` is the rank.
      dtype: Of the products.
      interpret: Run it step by step, on any device.
    """
    count, rows, columns = x.shape
    shape = (count, rows, w.shape[-1]) if tall else (count, w.shape[-2], columns)
    depth, rank = (rows, columns) if tall else (columns, rows)
    tile = max(_LEAST, _ENTRIES // _width(rank))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        functools.partial(_kernel, tall=tall, tile=tile, interpret=interpret),
        grid=(pl.cdiv(depth, tile), count),
        in_specs=[anywhere] * 3,
        out_specs=anywhere,
        out_shape=jax.ShapeDtypeStruct(shape, dtype),
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=interpret,
        name="multiply",
    )(first, w, x)


def _width(size: int) -> int:
    return max(16, pl.next_power_of_2(size))


def _kernel(
    first_ref: Any,
    w_ref: Any,
    x_ref: Any,
    y_ref: Any,
    *,
    tall: bool,
    tile: int,
    interpret: bool,
) -> None:
    block, row = pl.program_id(0), pl.program_id(1)
    zero = 0 * block  # JAX 0.12 refuses a known place whose slice ends beyond.
    depth = _Axis(block * tile, tile, x_ref.shape[1 if tall else 2])
    rank, new = (
        _Axis(zero, _width(size), size)
        for size in (w_ref.shape[1:] if tall else w_ref.shape[:0:-1])
    )
    w = _load(w_ref, triton.load(first_ref.at[zero]) + row, *_in_order(tall, rank, new))
    x = widened(_load(x_ref, row, *_in_order(tall, depth, rank)), jnp.float32)
    # Interpreted on a CPU, the preset does not exist.
    exact, three = lax.Precision.HIGHEST, lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    y = lax.dot(
        *_in_order(tall, x, w),
        precision=exact if interpret else three,
        preferred_element_type=jnp.float32,
    )
    rows, columns = _in_order(tall, depth, new)
    triton.store(
        y_ref.at[row, rows.slice, columns.slice],
        y.astype(y_ref.dtype),
        mask=_mask(rows, columns),
    )


def _in_order(tall: bool, x: Any, y: Any) -> tuple[Any, Any]:
    return (x, y) if tall else (y, x)


class _Axis:
    """Some places of an axis, not all of which there are."""

    def __init__(self, start: Array, length: int, size: int) -> None:
        self.slice = pl.ds(start, length)
        self.inside = start + jnp.arange(length, dtype=start.dtype) < size


def _mask(rows: _Axis, columns: _Axis) -> Array:
    return rows.inside[:, None] & columns.inside[None, :]


def _load(ref: Any, row: Array, rows: _Axis, columns: _Axis) -> Array:
    at = ref.at[row, rows.slice, columns.slice]
    return triton.load(at, mask=_mask(rows, columns), other=0)
