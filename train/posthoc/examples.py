"""A few batches for scores with data. Runs on the host.

Axis letters: `N` examples, `S` batches, `B` examples of a batch, `T` tokens, or
whatever else the second axis of inputs is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from train.data.batch import NO_LABEL, Batch


class Examples(NamedTuple):
    """Inputs, padded to one width, and their labels `[N]` or `[N, T]`."""

    inputs: Any
    labels: Int[np.ndarray, "..."]


def examples_of(batches: Sequence[Batch]) -> Examples:
    """Join batches of any widths, each array padded to its largest."""
    inputs = jax.tree.map(lambda *x: _joined(x, 0), *(x.inputs for x in batches))
    return Examples(inputs, _joined([x.labels for x in batches], NO_LABEL))


def _joined(parts: Sequence[jax.Array | np.ndarray], fill: int) -> np.ndarray:
    # Labels of whole sentences have no width, nor have other numbers of one.
    width = max(x.shape[1] if x.ndim > 1 else 0 for x in parts)

    def wide(x: jax.Array | np.ndarray) -> np.ndarray:
        if x.ndim < 2:
            return np.asarray(x)
        more = [(0, 0), (0, width - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]
        return np.pad(np.asarray(x), more, constant_values=fill)

    return np.concatenate([wide(x) for x in parts])


def batches(
    examples: Examples, *, size: int, count: int = 50, seed: int = 0
) -> Examples:
    """Return the first `count` batches of a shuffle, `[S, B, T]`; at most each once.

    Where there are fewer examples than that, all are taken, and rows of zeros without
    a label fill up the last batch.

    Args:
      examples: `[N, T]`. Rows without a label are left out.
      size: The examples of a batch.
      count: The batches.
      seed: The seed of the shuffle.

    Raises:
      ValueError: if there are none.
    """
    labels = np.asarray(examples.labels)
    labelled = (labels != NO_LABEL).any(tuple(range(1, labels.ndim)))
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(labelled))
    rows = rows[: size * count]
    if not len(rows):
        raise ValueError("No examples to score components with: `examples` is empty.")
    missing = -len(rows) % size

    def cut(x: np.ndarray, fill: int = 0) -> np.ndarray:
        x = np.asarray(x)
        more = np.full((missing, *x.shape[1:]), fill, x.dtype)
        return np.concatenate([x[rows], more]).reshape(-1, size, *x.shape[1:])

    return Examples(jax.tree.map(cut, examples.inputs), cut(labels, NO_LABEL))
