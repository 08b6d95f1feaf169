"""Many arrays joined, and joined arrays divided, on an NVIDIA GPU.

By kernels for some arrays at once, where there are kernels. The arrays of all shapes
have to come together: only then do they share a compiled kernel.

Traceable under `jit`.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Shaped

from para_jax.linalg import factorize, joins
from para_jax.linalg.joins import Members

# Arrays that one kernel copies: beyond it, it takes longer to compile.
_MOST = 48
# Places in a joined array are counted in 32 bits.
_LARGEST = 2**31


@jax.custom_jvp
def join(groups: Sequence[Members]) -> list[list[Array]]:
    """Return each group as a few stacks `[N, ...]`; a single stack as it is.

    Equal joins in one program are made once.
    """
    found = pieces(groups)
    sizes = [x[0].size for row in found for x in row if len(x) > 1]
    return [[_join(x, sizes) for x in row] for row in found]


@join.defjvp
def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    # A kernel has no derivative.
    return join(*primals), [[joins.join(x) for x in row] for row in pieces(*tangents)]


def pieces(groups: Sequence[Members]) -> list[list[Members]]:
    """Return the arrays of each group in the pieces that are joined, in their order.

    Those of a piece have stacks of one shape.
    """
    runs = [
        [list(x) for _, x in itertools.groupby(group, key=lambda x: x.shape)]
        for group in groups
    ]
    # A number that divides all of them: a kernel for one piece then serves all.
    most = joins.common([len(x) for row in runs for x in row], _MOST)
    return [[piece for x in row for piece in joins.chunks(x, most)] for row in runs]


def split(x: Sequence[Shaped[Array, "_ ..."]]) -> list[list[Array]]:
    """Return the rows of every array."""
    sizes = [y.size // len(y) for y in x]
    most = joins.common([len(y) for y in x], _MOST)
    return [_split(y, sizes, most) for y in x]


def _join(x: Members, sizes: Sequence[int]) -> Array:
    found = None
    if len(x) > 1 and _has_kernel(x[0], len(x) * x[0].size):
        from para_jax.linalg.gpu import copies

        args = copies.units(x[0].size), *(y.reshape(-1) for y in x)
        blocks = copies.blocks(x[0].size, sizes)
        join = functools.partial(copies.join, blocks=blocks)
        # Two arrays show what more would.
        found = factorize.made_by(lambda: join(*args), join, *args[:3])
    return joins.join(x) if found is None else found.reshape(-1, *x[0].shape[-2:])


def _split(x: Shaped[Array, "N ..."], sizes: Sequence[int], most: int) -> list[Array]:
    count, tail = len(x), x.shape[1:]
    rows, found = x.reshape(count, -1), None
    if count > 1 and _has_kernel(x, x.size):
        from para_jax.linalg.gpu import copies

        size = rows.shape[1]
        units, blocks = copies.units(size), copies.blocks(size, sizes)
        split = functools.partial(copies.split, units, blocks=blocks)
        found = factorize.made_by(
            lambda: [y for some in joins.chunks(rows, most) for y in split(some)],
            *(split, jax.ShapeDtypeStruct((2, size), rows.dtype)),
        )
    parts = lax.split(rows, [1] * count) if found is None else found
    return [y.reshape(tail) for y in parts]


def _has_kernel(x: Array, size: int) -> bool:
    # What Triton does with floats of 8 bits was never tried.
    known = x.dtype.itemsize > 1 or x.dtype == bool
    return known and size < _LARGEST and factorize.on_one_gpu(x)
