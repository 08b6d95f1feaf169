"""A part of a task as arrays that stay on the device, and the order to read them in.

Axis letters: `N` sentences, `T` tokens, `S` steps, `B` sentences a batch. Host code.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from train.data import sentiment, tokens


class Arrays(NamedTuple):
    """Sentences of one width. A pytree: a compiled program takes rows out of it."""

    ids: Int[jax.Array | np.ndarray, "N T"]
    lengths: Int[jax.Array | np.ndarray, "N"]
    labels: Int[jax.Array | np.ndarray, "N"]


class Data(NamedTuple):
    """The three parts of a task: one to learn from, two to evaluate on.

    Attributes:
      train: All of one width, for batches of any rows.
      validation: To choose by.
      test: To report.
    """

    train: Arrays
    validation: Sequence[tokens.Batch]
    test: Sequence[tokens.Batch]


def load(task: str, folder: pathlib.Path, max_length: int) -> Data:
    """Returns the data of `task` for the tokenizer in a model folder.

    Args:
      task: One of `sentiment.TASKS`.
      folder: That of the model.
      max_length: Tokens of a sentence beyond so many are dropped.
    """
    tokenizer = tokens.load_tokenizer(folder, max_length)
    parts = {}
    for part in sentiment.PARTS:
        texts, labels = sentiment.load(task, part)
        parts[part] = tokens.encode(tokenizer, texts), labels
    return Data(
        train=pack(*parts["train"], width=max_length),
        validation=tokens.batches(*parts["validation"]),
        test=tokens.batches(*parts["test"]),
    )


def pack(ids: Sequence[Sequence[int]], labels: Sequence[int], *, width: int) -> Arrays:
    """Returns sentences as arrays, filled up with zeros to `width` tokens.

    Raises:
      ValueError: if there are none, one is too long, or a label is no class.
    """
    if not ids:
        raise ValueError("No sentences to train on: the split is empty.")
    if bad := sorted(set(labels) - set(range(len(sentiment.CLASSES)))):
        raise ValueError(
            f"The label {bad[0]} is out of range, expected 0 to "
            f"{len(sentiment.CLASSES) - 1}: {', '.join(sentiment.CLASSES)}."
        )
    if (longest := max(map(len, ids))) > width:
        raise ValueError(f"A sentence has {longest} tokens, expected <= {width}.")
    rows = np.zeros((len(ids), width), np.int32)
    for row, sentence in zip(rows, ids, strict=True):
        row[: len(sentence)] = sentence
    lengths = np.array([len(x) for x in ids], np.int32)
    return Arrays(rows, lengths, np.array(labels, np.int32))


def order(seed: int, sentences: int, steps: int, batch: int) -> Int[np.ndarray, "S B"]:
    """Returns which rows each step reads: one shuffled epoch after another.

    It depends on the seed alone, so that methods of equal seeds see the same batches,
    and a resumed run goes on where it stopped. A batch may span two epochs.
    """
    epochs = -(-steps * batch // sentences)
    generator = np.random.default_rng([seed, 0xDA7A])
    rows = [generator.permutation(sentences) for _ in range(epochs)]
    return np.concatenate(rows)[: steps * batch].reshape(steps, batch).astype(np.int32)
