"""Split the updates of fused modules into the parts of diffusers, and join them again.

The parts of a fused kernel are ranges of its outputs, so each is `a @ b[:, range]`: the
split is exact, and all parts share `a`. In the other direction, parts with one `a` are
one update of the same rank; parts with their own `a` become block diagonal:

    [a_1 b_1 | a_2 b_2] = [a_1 | a_2] @ [[b_1, 0], [0, b_2]],

at the sum of the ranks. Axis letters as in `para_jax/_adapters/adapter.py`. Runs on the
host, in NumPy.
"""

from collections.abc import Sequence

import numpy as np

from para_jax._adapters.adapter import Adapter, Array, folded
from para_jax.names.diffusion.family import Form

_MLP = 4  # The width of the MLP in FLUX.1, as a multiple of the model's.


def sizes(form: Form, shape: tuple[int, int], path: str) -> tuple[int, ...]:
    """Return the number of outputs of each part of the authors' module.

    Args:
      form: The order of the parts.
      shape: `(m, n)` of the module.
      path: Its path, for the message.

    Raises:
      ValueError: if the shape is not one that the family has.
    """
    m, n = shape
    if form == "thirds" and n % 3 == 0:
        return (n // 3,) * 3
    if form == "single" and n == (3 + _MLP) * m:
        return (m, m, m, _MLP * m)
    if form == "swapped" and n % 2 == 0:
        return (n // 2, n // 2)
    if form == "mlp" and n == _MLP * m:
        return (n,)
    if form == "continuous":
        return (n // 2, n // 2) if n == 2 * m else (n,)
    if form == "same":
        return (n,)
    raise ValueError(
        f"'{path}' has {m} inputs and {n} outputs, which do not divide into the "
        f"parts that such a module has. Is it of another model with the same names?"
    )


def is_turned(form: Form, shape: tuple[int, int]) -> bool:
    """Check whether the two halves of the outputs change places."""
    # A "continuous" module is a shift and a scale in the last block alone, and six
    # outputs per input in all others: only the shape tells which of them it is.
    return form == "swapped" or (form == "continuous" and shape[1] == 2 * shape[0])


def columns(array: Array, widths: Sequence[int]) -> list[Array]:
    """Divide the last axis into ranges of these widths."""
    ends = np.cumsum(widths)
    return [array[..., e - w : e] for e, w in zip(ends, widths, strict=True)]


def turned(array: Array) -> np.ndarray:
    """Exchange the two halves of the last axis; its own inverse."""
    first, second = columns(array, (array.shape[-1] // 2,) * 2)
    return np.concatenate([np.asarray(second), np.asarray(first)], axis=-1)


def used(part: Adapter) -> Adapter:
    """Drop the components that are zero in this part.

    They belong to the other parts of a module joined from parts with their own `a`.
    """
    # A part of all zeros stays as it is, rather than become an adapter of rank 0.
    rows = np.asarray(part.b).any(axis=-1)
    if rows.all() or not rows.any():
        return part
    a, b = np.asarray(part.a)[..., rows], np.asarray(part.b)[rows]
    return Adapter(a=a, b=b, scale=part.scale)


def joined(parts: Sequence[Adapter | None], widths: Sequence[int]) -> Adapter:
    """Return one update with the parts' outputs side by side.

    Args:
      parts: The update of each part; None for no update. At least one is not None.
      widths: The outputs of each part.
    """
    there = [x for x in parts if x is not None]
    first = there[0]
    if any(x.scale != first.scale or not _same(x.a, first.a) for x in there):
        return _block_diagonal(parts, widths)
    blocks = [_block(x, first.b, w) for x, w in zip(parts, widths, strict=True)]
    b = np.concatenate(blocks, axis=-1)
    return Adapter(a=first.a, b=b, scale=first.scale, nominal=first.nominal)


def _block_diagonal(parts: Sequence[Adapter | None], widths: Sequence[int]) -> Adapter:
    """Return one update at the sum of the ranks, with the scales folded into `b`."""
    there = [x for x in parts if x is not None]
    rank = sum(x.rank for x in there)
    b = np.zeros((rank, sum(widths)), np.asarray(there[0].b).dtype)
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            block = np.asarray(folded(part).b)
            b[row : row + part.rank, column : column + width] = block
            row += part.rank
        column += width
    a = np.concatenate([np.asarray(x.a) for x in there], axis=-1)
    return Adapter(a=a, b=b)


def _block(part: Adapter | None, like: Array, width: int) -> np.ndarray:
    if part is not None:
        return np.asarray(part.b)
    return np.zeros((*like.shape[:-1], width), np.asarray(like).dtype)


def _same(one: Array, two: Array) -> bool:
    return one is two or (one.shape == two.shape and np.array_equal(one, two))
