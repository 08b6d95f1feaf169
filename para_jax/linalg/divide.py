"""Joined arrays divided into many separate ones: the results of a program.

A model's factors come in as hundreds of arrays, are computed with as a few, and go out
as hundreds again. A slice of a joined array for each is what that means, but a poor
program: XLA:CPU compiles every slice as a kernel of its own, for some 30 ms each, and a
GPU starts every one as a kernel of its own, for 2 us each. So on both they are made in
another way. Everything is a copy, to the bit.

Traceable under `jit`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped, UInt

from para_jax.linalg import factorize, sharding

# Fewer slices compile quickly on any platform.
_FEW = 16
# Arrays that one GPU kernel writes: beyond it, to compile the kernel takes longer.
_MOST = 32


def divide(
    x: Sequence[Shaped[Array, "..."]], sizes: Sequence[Sequence[int]]
) -> list[list[Array]]:
    """Return each array in parts along its first axis.

    Args:
      x: The joined arrays.
      sizes: The rows of the parts of each, in order; they add up to all of its rows.
    """

    def slices(x: Sequence[Array]) -> list[list[Array]]:
        return [_slices(*pair) for pair in zip(x, sizes, strict=True)]

    @jax.custom_jvp
    def parts(x: Sequence[Array]) -> list[list[Array]]:
        # Compiled once for calls outside of a program, too.
        static = tuple(map(tuple, sizes))
        return _compiled(x, static, on_cpu=jax.default_backend() == "cpu")

    # A loop of unknown length has no derivative backwards, nor has a kernel.
    @parts.defjvp
    def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
        return parts(*primals), slices(*tangents)

    many = sum(map(len, sizes)) > _FEW
    return (parts if many and sharding.mesh_of(x) is None else slices)(list(x))


def _slices(x: Array, sizes: Sequence[int]) -> list[Array]:
    return list(lax.split(x, sizes))


@functools.partial(jax.jit, static_argnames=("sizes", "on_cpu"))
def _compiled(
    x: Sequence[Array], sizes: Sequence[Sequence[int]], *, on_cpu: bool
) -> list[list[Array]]:
    if on_cpu:
        return _at_counted_places(x, sizes)
    alike: dict[Any, list[int]] = {}
    for y, row in zip(x, sizes, strict=True):
        alike.setdefault(_part(y, row), []).append(len(row))
    return [
        _in_chunks(y, row, _common(alike[_part(y, row)]))
        for y, row in zip(x, sizes, strict=True)
    ]


def _part(x: Array, sizes: Sequence[int]) -> tuple[Any, ...]:
    """Return what the first part has in common with others of a kernel."""
    return (sizes[0] * math.prod(x.shape[1:]), x.dtype)


def _at_counted_places(
    x: Sequence[Array], sizes: Sequence[Sequence[int]]
) -> list[list[Array]]:
    """Return slices at places that the compiler does not know.

    It compiles equal operations once, and slices of one length at places that come from
    outside are equal. Places that it can compute it makes constants of.
    """
    starts = [np.cumsum([0, *row[:-1]]) for row in sizes]
    # Unsigned, as a signed place is first compared with 0.
    places = _counted(1 + max(int(row[-1]) for row in starts))
    zero = np.uint32(0)

    def part(y: Array, start: int, size: int) -> Array:
        rest = [zero] * (y.ndim - 1)
        return lax.dynamic_slice(y, (places[start], *rest), (size, *y.shape[1:]))

    return [
        [part(y, int(i), size) for i, size in zip(row, counts, strict=True)]
        for y, row, counts in zip(x, starts, sizes, strict=True)
    ]


def _counted(count: int) -> list[UInt[Array, ""]]:
    """Return the numbers 0, 1, ... as results of a loop of unknown length.

    From zeros, `n_j <- 2 n_(j // 2) + j % 2` has counted when all bits are there: after
    a step a bit, and any further one changes nothing.
    """
    one = np.uint32(1)
    start = jnp.uint32(0)
    steps = lax.add(lax.optimization_barrier(start), np.uint32(count.bit_length()))

    def step(state: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        done, numbers = state
        twice = [lax.add(x, x) for x in numbers[: (count + 1) // 2]]
        numbers = [
            lax.add(twice[j // 2], one) if j % 2 else twice[j // 2]
            for j in range(count)
        ]
        return lax.add(done, one), numbers

    state = start, [start] * count
    return lax.while_loop(lambda x: x[0] < steps, step, state)[1]


def _common(counts: Sequence[int]) -> int:
    """Return how many parts a kernel writes at most, for arrays with parts of one size.

    They share a kernel if its number of parts divides all of theirs: often that of the
    layers does, or a factor of it. An array with one part needs no kernel.
    """
    whole = math.gcd(*(x for x in counts if x > 1))
    factor = max(x for x in range(1, _MOST + 1) if whole % x == 0)
    return factor if factor > _MOST // 4 else _MOST


def _in_chunks(x: Array, sizes: Sequence[int], most: int) -> list[Array]:
    """Return the parts by one kernel for some of them at once, on a GPU."""
    if len(set(sizes)) > 1 or len(sizes) == 1 or not factorize.on_one_gpu(x):
        return _slices(x, sizes)
    from para_jax.linalg.gpu import divide as gpu

    size = sizes[0]
    shape = (size, *x.shape[1:])
    rows = x.reshape(len(sizes), math.prod(shape))
    # Chunks of one length share a trace, and a compiled kernel.
    length = math.ceil(len(sizes) / math.ceil(len(sizes) / most))
    parts: list[Array] = []
    for start in range(0, len(sizes), length):
        chunk = rows[start : start + length]
        parts += factorize.by_kernel(gpu.rows, _rows, chunk)
    return [part.reshape(shape) for part in parts]


def _rows(x: Shaped[Array, "count size"]) -> list[Array]:
    return [lax.squeeze(y, (0,)) for y in lax.split(x, [1] * len(x))]
