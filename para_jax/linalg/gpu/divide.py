"""The rows of a matrix as arrays of their own, by one kernel for all.

Traceable under `jit`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Shaped

# The entries of each row that one block copies.
_BLOCK = 1024


@functools.partial(jax.jit, static_argnames="interpret")
def rows(
    x: Shaped[Array, "count size"], *, interpret: bool = False
) -> list[Shaped[Array, " size"]]:
    """Return each row of `x`.

    Args:
      x: Of any dtype.
      interpret: Run it step by step, on any device.
    """
    count, size = x.shape
    found = pl.pallas_call(
        functools.partial(_kernel, size=size),
        grid=(pl.cdiv(size, _BLOCK),),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=[pl.BlockSpec(memory_space=pl.ANY)] * count,
        out_shape=[jax.ShapeDtypeStruct((size,), x.dtype)] * count,
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=interpret,
        name="rows",
    )(x)
    return list(found)


def _kernel(x_ref: Any, *row_refs: Any, size: int) -> None:
    block = pl.program_id(0)
    start = block * _BLOCK
    at = pl.ds(start, _BLOCK)
    mask = start + jnp.arange(_BLOCK, dtype=start.dtype) < size
    for i, row_ref in enumerate(row_refs):
        # Not `i` itself: JAX 0.10 refuses a known place beside a slice.
        row = triton.load(x_ref.at[0 * block + i, at], mask=mask)
        triton.store(row_ref.at[at], row, mask=mask)
