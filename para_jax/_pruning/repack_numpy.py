"""Children of adapters in host memory, by NumPy.

The counterpart of `repack_traced.py`, in float64 and without a compiler. As in
`numpy_products.py`, kernels of equal shapes are read block by block.

Runs on the host.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from para_jax._adapters.adapter import Adapter
from para_jax._pruning.batches import Group, Progress, all_pieces, share, workers
from para_jax._pruning.decompose import Spectra
from para_jax._pruning.decompose_host import in_numpy
from para_jax.linalg import threads
from para_jax.linalg.numpy_products import AT_ONCE, Kernels, blocks
from para_jax.linalg.tolerances import SIGNING

# Numbers of one kernel to cast at a time, as in a Gram product.
_BLOCK = 2**16


def kernels(
    spectra: Spectra,
    masks: Mapping[str, Any],
    adapters: Mapping[str, Adapter],
    progress: Progress,
) -> Iterator[tuple[str, tuple[int, ...], Adapter]]:
    """Yield the kernels of a child with a rank above 0, with path and index."""
    adapters = in_numpy(adapters)
    masks = {path: np.asarray(x) for path, x in masks.items()}
    if any(isinstance(x.left, jax.Array) for x in spectra.values()):
        spectra = jax.tree.map(np.asarray, dict(spectra))

    def each(piece: tuple[Group, slice]) -> list[tuple[str, Any, Adapter]]:
        group, rows = piece
        kept = [(*x, np.flatnonzero(masks[x[0]][x[1]])) for x in group.members()[rows]]
        some = [x for x in kept if x[2].size]
        found = []
        for i in range(0, len(some), AT_ONCE):
            found += _children(some[i : i + AT_ONCE], spectra, adapters)
        return found

    todo = all_pieces(adapters, share(adapters))
    results = threads.in_threads(each, todo, most=workers(adapters))
    for _, found in zip(progress(todo), results, strict=True):
        yield from found


def _children(
    kept: Sequence[tuple[str, tuple[int, ...], np.ndarray]],
    spectra: Spectra,
    adapters: Mapping[str, Adapter],
) -> list[tuple[str, tuple[int, ...], Adapter]]:
    """Return the kept components of kernels of equal shapes, by path and index."""
    a = [np.asarray(adapters[path].a[index]) for path, index, _ in kept]
    b = [np.asarray(adapters[path].b[index]) for path, index, _ in kept]
    left = [
        np.asarray(spectra[path].left[index][:, some]) for path, index, some in kept
    ]
    right = [np.asarray(spectra[path].right[index][some]) for path, index, some in kept]
    dtype = spectra[kept[0][0]].dtype
    with np.errstate(over="ignore"):  # The caller checks that the child is finite.
        new_b, signs = _rows(right, b, dtype)
        left = [x * sign for x, sign in zip(left, signs, strict=True)]
        new_a = _columns(a, left, dtype)
    found = zip(kept, new_a, new_b, strict=True)
    return [(path, index, Adapter(a=x, b=y)) for (path, index, _), x, y in found]


def _columns(a: Kernels, left: Kernels, dtype: str) -> list[np.ndarray]:
    """Return each `a @ left`, computed in float64 and stored in `dtype`."""
    result = [np.empty((len(a[0]), x.shape[-1]), dtype) for x in left]
    for rows, wide in blocks(a, _BLOCK):
        for new, one, x in zip(result, wide, left, strict=True):
            new[rows] = one @ x
    return result


def _rows(
    right: Kernels, b: Kernels, dtype: str
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return each `right @ b`, as `_columns`, and the signs given to its rows."""
    result = [np.empty((len(x), b[0].shape[-1]), dtype) for x in right]
    signs: list[np.ndarray] = []
    # The first columns settle the signs, so they are in one block.
    numbers = max(_BLOCK, SIGNING * b[0].shape[0])
    for columns, wide in blocks([x.T for x in b], numbers):
        products = [x @ one.T for x, one in zip(right, wide, strict=True)]
        if columns.start == 0:
            signs = [_signs(x) for x in products]
            right = [x * sign[:, None] for x, sign in zip(right, signs, strict=True)]
            # Added to zero, as a product is: it has no negative zeros.
            products = [
                0 + x * y[:, None] for x, y in zip(products, signs, strict=True)
            ]
        for new, product in zip(result, products, strict=True):
            new[:, columns] = product
    return result, signs


def _signs(new: Float[np.ndarray, "k n"]) -> Float[np.ndarray, " k"]:
    """Return the signs of new rows of `b`, by the rule of `tolerances.SIGNING`."""
    first = new[:, :SIGNING]
    largest = np.abs(first).argmax(-1)  # Of equal ones, the first.
    return np.where(first[np.arange(len(new)), largest] < 0, -1.0, 1.0)
