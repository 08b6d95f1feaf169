"""Training data as arrays on the device, and the order to read them in.

Axis letters: `N` examples, `T` tokens, `S` steps, `B` examples a batch. Host code, but
for `batch`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from train.data import sentiment
from train.data.batch import Batch, Examples, Stream
from train.models.bert import Tokens

ROWS = 8192


class Sentences(NamedTuple):
    """Sentences of one width. A pytree, so that a compiled program can index it."""

    ids: Int[jax.Array | np.ndarray, "N T"]
    lengths: Int[jax.Array | np.ndarray, "N"]
    labels: Int[jax.Array | np.ndarray, "N"]

    def batch(self, rows: Int[jax.Array, "B"]) -> Batch:
        """Return some of the sentences. Traceable under `jit`."""
        ids, lengths, labels = (x[rows] for x in self)
        mask = jnp.arange(ids.shape[1])[None] < lengths[:, None]
        return Batch(Tokens(ids, mask), labels)


class Data(NamedTuple):
    """The training data of a run.

    Attributes:
      train: The examples, for batches of any rows.
      examples: The number of examples.
    """

    train: Examples | Stream
    examples: int


def pack(
    ids: Sequence[Sequence[int]],
    labels: Sequence[int],
    *,
    width: int,
    classes: Sequence[str] = sentiment.CLASSES,
) -> Sentences:
    """Pack sentences into arrays, padded with zeros to `width` tokens.

    The number of rows is a power of two, `ROWS` at least, so that tasks share compiled
    programs. No batch reads the rows of zeros behind the last sentence.

    Args:
      ids: The token ids of each sentence.
      labels: The class of each.
      width: Tokens of a row.
      classes: The names of the classes.

    Raises:
      ValueError: if there are none, one is too long, or a label is not a class.
    """
    if not ids:
        raise ValueError("No sentences to train on: the split is empty.")
    if bad := sorted(set(labels) - set(range(len(classes)))):
        raise ValueError(
            f"The label {bad[0]} is out of range, expected 0 to "
            f"{len(classes) - 1}: {', '.join(classes)}."
        )
    if (longest := max(map(len, ids))) > width:
        raise ValueError(f"A sentence has {longest} tokens, expected <= {width}.")
    rows = np.zeros((len(ids), width), np.int32)
    for row, sentence in zip(rows, ids, strict=True):
        row[: len(sentence)] = sentence
    lengths = np.array([*map(len, ids)], np.int32)
    return Sentences(
        ids=filled_up(rows),
        # At least one token: a mask of zeros would make attention NaN.
        lengths=np.maximum(filled_up(lengths), 1),
        labels=filled_up(np.array(labels, np.int32)),
    )


def filled_up(rows: np.ndarray, multiple: int | None = None) -> np.ndarray:
    """Pad the rows with zeros to a number common to several tasks.

    Args:
      rows: Any array.
      multiple: The divisor of the number of rows. By default it becomes a
        power of two, `ROWS` at least.
    """
    # Powers of two: tasks of similar size share one compiled program.
    size = max(ROWS, 1 << (len(rows) - 1).bit_length())
    if multiple is not None:
        size = -(-len(rows) // multiple) * multiple
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def order(seed: int, examples: int, steps: int, batch: int) -> Int[np.ndarray, "S B"]:
    """Return the rows for each step: one shuffled epoch after another.

    It depends on the seed alone, so that methods of equal seeds see the same
    batches, and a resumed run continues with the right ones. A batch may span two
    epochs.
    """
    epochs = -(-steps * batch // examples)
    # A second number in the seed, so that no other generator of this seed agrees.
    generator = np.random.default_rng([seed, 0xDA7A])
    # Whole epochs: each example is seen once before any is seen twice.
    rows = [generator.permutation(examples) for _ in range(epochs)]
    return np.concatenate(rows)[: steps * batch].reshape(steps, batch).astype(np.int32)
