"""Joined arrays divided into many separate ones: the results of a program.

A model's factors come in as hundreds of arrays, are computed with as a few, and go out
as hundreds again. A slice of a joined array for each is what that means, but a poor
program: XLA:CPU compiles every slice as a kernel of its own, for some 30 ms each, and a
GPU starts every one as a kernel of its own, for 2 us each. So on both they are made in
another way. Everything is a copy, to the bit.

Traceable under `jit`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped, UInt

from para_jax.linalg import pieces, platforms, sharding

# Fewer slices compile quickly on any platform.
_FEW = 16


def divide(
    x: Sequence[Shaped[Array, "..."]], sizes: Sequence[Sequence[int]]
) -> list[list[Array]]:
    """Return each array in parts along its first axis.

    Args:
      x: The joined arrays.
      sizes: The rows of the parts of each, in order; they add up to all of its rows.
    """
    if sum(map(len, sizes)) <= _FEW or sharding.mesh_of(x) is not None:
        return slices(x, sizes)
    return _computed(tuple(map(tuple, sizes)))(list(x))


def slices(x: Sequence[Array], sizes: Sequence[Sequence[int]]) -> list[list[Array]]:
    """Return each array in parts, by an operation that a compiler sees through."""
    return [list(lax.split(*pair)) for pair in zip(x, sizes, strict=True)]


@functools.lru_cache  # Equal functions are compiled once, outside of a program too.
def _computed(
    sizes: Sequence[Sequence[int]],
) -> Callable[[Sequence[Array]], list[list[Array]]]:
    plain = functools.partial(slices, sizes=sizes)
    ways = {
        "cpu": functools.partial(on_a_cpu, sizes=sizes),
        "cuda": functools.partial(_on_a_gpu, sizes=sizes),
        "tpu": plain,
        "default": plain,
    }

    @jax.custom_jvp
    def parts(x: Sequence[Array]) -> list[list[Array]]:
        out = [
            [jax.ShapeDtypeStruct((n, *y.shape[1:]), y.dtype) for n in row]
            for y, row in zip(x, sizes, strict=True)
        ]
        return platforms.by_platform(x, out=out, **ways)

    # A loop of unknown length has no derivative backwards, nor has a kernel.
    @parts.defjvp
    def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
        return parts(*primals), plain(*tangents)

    return parts


def on_a_cpu(x: Sequence[Array], sizes: Sequence[Sequence[int]]) -> list[list[Array]]:
    """Return each array in parts, in a program for CPUs.

    If there are many, by slices at places that the compiler does not know. It compiles
    equal operations once, and slices of one length at places that come from outside are
    equal. Places that it can compute it makes constants of.
    """
    if sum(map(len, sizes)) <= _FEW:
        return slices(x, sizes)
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


def _on_a_gpu(x: Sequence[Array], sizes: Sequence[Sequence[int]]) -> list[list[Array]]:
    """Return each array in parts, by kernels for some of equal size at once."""
    # Without a row for each part, a kernel would have to know all sizes.
    equal = [len(set(row)) == 1 for row in sizes]
    rows = [
        y.reshape(len(row), row[0], *y.shape[1:])
        for y, row, is_equal in zip(x, sizes, equal, strict=True)
        if is_equal
    ]
    parts = iter(pieces.split(rows))
    return [
        next(parts) if is_equal else list(lax.split(y, row))
        for y, row, is_equal in zip(x, sizes, equal, strict=True)
    ]
