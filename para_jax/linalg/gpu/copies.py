"""Many arrays to one, and back: copies by one kernel for some of them at once.

A library starts a kernel an array to divide one, and joins some at a third of the speed
of memory. A kernel here knows how many arrays there are, but not how long: nothing in
it names a shape, so all shapes of a model share it, and it is compiled once.

Traceable under `jit`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Int, Shaped

# The entries that one program copies.
_STEP = 2048
# Programs for one at work.
_IDLE = 16


def blocks(size: int, sizes: Sequence[int]) -> int:
    """Return how many programs to start for an array: as many as for others, if it can.

    Args:
      size: Its entries.
      sizes: Those of all arrays, this one among them. Idle programs cost little, unless
        most are.
    """
    return pl.cdiv(max(x for x in sizes if x <= _IDLE * size), _STEP)


def units(size: int) -> Int[np.ndarray, "1"]:
    """Return a size as kernels take it."""
    return np.array([size // _unit(size)], np.int32)


def _unit(size: int) -> int:
    # Of a multiple of 16 entries, 16 bytes are read at once.
    return 16 if size % 16 == 0 else 1


@functools.partial(jax.jit, static_argnames=("blocks", "interpret"))
def join(
    units: Int[Array, "1"],
    *x: Shaped[Array, " size"],
    blocks: int,
    interpret: bool = False,
) -> Shaped[Array, "count size"]:
    """Return arrays as the rows of one.

    Args:
      units: Their length, as `units` gives it.
      *x: Arrays of equal lengths and one dtype.
      blocks: As `blocks` gives it. Kernels with equal ones are compiled once.
      interpret: Run it step by step, on any device.
    """
    count, size = len(x), x[0].size
    kernel = functools.partial(_join, unit=_unit(size))
    (joined,) = _call(kernel, (blocks, count), units, x, [count * size], interpret)
    return joined.reshape(count, size)


@functools.partial(jax.jit, static_argnames=("blocks", "interpret"))
def split(
    units: Int[Array, "1"],
    x: Shaped[Array, "count size"],
    *,
    blocks: int,
    interpret: bool = False,
) -> list[Shaped[Array, " size"]]:
    """Return the rows of an array as arrays.

    Args:
      units: Their length, as `units` gives it.
      x: Of any dtype.
      blocks: As `blocks` gives it. Kernels with equal ones are compiled once.
      interpret: Run it step by step, on any device.
    """
    count, size = x.shape
    kernel = functools.partial(_split, unit=_unit(size))
    out = [size] * count
    return _call(kernel, (blocks, count), units, [x.reshape(-1)], out, interpret)


def _call(
    kernel: Callable[..., None],
    grid: tuple[int, int],
    units: Array,
    x: Sequence[Array],
    out: Sequence[int],
    interpret: bool,
) -> list[Array]:
    """Return arrays of so many entries, written by a kernel."""

    def spec(size: int) -> pl.BlockSpec:
        # A block of a known length, so that the length of all is not in the program.
        # What is read of the joined array is beyond its block: interpreted, all is one.
        whole = size if interpret else _STEP
        return pl.BlockSpec((whole,), lambda block, member: (0 * block,))

    return list(
        pl.pallas_call(
            kernel,
            grid=grid,
            in_specs=[pl.BlockSpec(memory_space=pl.ANY), *(spec(y.size) for y in x)],
            out_specs=[spec(size) for size in out],
            out_shape=[jax.ShapeDtypeStruct((size,), x[0].dtype) for size in out],
            compiler_params=triton.CompilerParams(num_warps=4),
            interpret=interpret,
            name="copies",
        )(units, *x)
    )


def _join(units_ref: Any, *refs: Any, unit: int) -> None:
    *x_refs, y_ref = refs
    share = _Share(units_ref, unit)
    loads = [functools.partial(share.load, x_ref, share.start) for x_ref in x_refs]
    x = loads[0]() if len(loads) == 1 else lax.switch(share.member, loads)
    share.store(y_ref, share.in_all, x)


def _split(units_ref: Any, x_ref: Any, *y_refs: Any, unit: int) -> None:
    share = _Share(units_ref, unit)
    x = share.load(x_ref, share.in_all)
    for i, y_ref in enumerate(y_refs):
        store = functools.partial(share.store, y_ref, share.start, x)
        pl.when(share.member == i)(store)


class _Share:
    """What one program copies: a piece of one array.

    Attributes:
      member: The array.
      start: Where the piece is in the array.
      in_all: Where it is among all, joined.
    """

    def __init__(self, units_ref: Any, unit: int) -> None:
        block, self.member = pl.program_id(0), pl.program_id(1)
        # Not a known place: JAX 0.12 refuses one beside a slice.
        size = triton.load(units_ref.at[0 * block]) * unit
        self.start = block * _STEP
        self.in_all = self.member * size + self.start
        self.mask = self.start + jnp.arange(_STEP, dtype=self.start.dtype) < size

    def load(self, ref: Any, start: Array) -> Array:
        return triton.load(ref.at[pl.ds(start, _STEP)], mask=self.mask)

    def store(self, ref: Any, start: Array, x: Array) -> None:
        triton.store(ref.at[pl.ds(start, _STEP)], x, mask=self.mask)
