"""The few batches that scores with data look at. Host.

Axis letters: `N` sentences, `S` batches, `B` sentences of a batch, `T` tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from train.data.tokens import NO_LABEL, Batch
from train.models.bert import Tokens


class Examples(NamedTuple):
    """Sentences, all filled up to one width, and their classes."""

    tokens: Tokens
    labels: Int[np.ndarray, "..."]


def examples_of(batches: Sequence[Batch]) -> Examples:
    """Returns the sentences of batches of any widths, filled up to the largest."""
    width = max(batch.tokens.ids.shape[1] for batch in batches)

    def wide(x: Int[np.ndarray, "B T"] | Bool[np.ndarray, "B T"]) -> np.ndarray:
        return np.pad(x, [(0, 0), (0, width - x.shape[1])])

    ids = np.concatenate([wide(np.asarray(batch.tokens.ids)) for batch in batches])
    mask = np.concatenate([wide(np.asarray(batch.tokens.mask)) for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    return Examples(Tokens(ids, mask), labels)


def batches(
    examples: Examples, *, size: int, count: int = 50, seed: int = 0
) -> Examples:
    """Returns the first `count` batches of a shuffle, `[S, B, T]`; at most each once.

    Where there are fewer sentences than that, all are taken, and rows without a label
    and without a token fill up the last batch.

    Args:
      examples: Sentences `[N, T]`. Rows without a label are left out.
      size: The sentences of a batch.
      count: The batches.
      seed: Of the shuffle.

    Raises:
      ValueError: if there are no sentences.
    """
    labels = np.asarray(examples.labels)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(labels != NO_LABEL))
    rows = rows[: size * count]
    if not len(rows):
        raise ValueError("No sentences to score components with: `examples` is empty.")
    missing = -len(rows) % size

    def cut(x: np.ndarray, fill: int) -> np.ndarray:
        more = np.full((missing, *x.shape[1:]), fill, x.dtype)
        return np.concatenate([x[rows], more]).reshape(-1, size, *x.shape[1:])

    ids, mask = map(np.asarray, examples.tokens)
    return Examples(Tokens(cut(ids, 0), cut(mask, 0)), cut(labels, NO_LABEL))
