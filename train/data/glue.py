"""Five tasks of GLUE: MNLI, SST-2, CoLA, QNLI and MRPC, and their metrics; RTE's rows.

A. Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", ICLR 2019. The labels of its test parts are secret, so "test" is the
official development part here, as in the paper; MNLI has a second one, "mismatched",
of other kinds of text. Axis letter: `N` sentences, or pairs of them. Runs on the host.
"""

import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from train.data import hub, sources

TASKS = tuple(x.name for x in sources.GLUE)
"""The paper's tasks."""

NAMES = (*TASKS, "rte")
"""All tasks that are read."""

MAX_LENGTH = 128
"""The maximal number of tokens of a sentence or pair, for RoBERTa."""


Score = Callable[[Int[np.ndarray, "N"], Int[np.ndarray, "N"]], float]
"""Map the predicted classes and the true ones to a score; 1 if all are right."""


class Sentences(NamedTuple):
    """Sentences, or pairs of them, with their labels.

    Attributes:
      texts: Strings, or pairs of strings, for a tokenizer's `encode_batch`.
      labels: Their classes.
      classes: The name of each class.
    """

    texts: tuple[str | tuple[str, str], ...]
    labels: Int[np.ndarray, "N"]
    classes: tuple[str, ...]


def load(
    task: str, part: str, *, data: pathlib.Path | None = None, subset: bool = False
) -> Sentences:
    """Return one part of one task.

    Args:
      task: One of `NAMES`.
      part: "train", "test" or, of MNLI, "mismatched".
      data: A folder of data sets, see `hub`.
      subset: Whether fewer sentences are meant to be there than the task has.

    Raises:
      OSError: if the task is not there.
      ValueError: if there is no such task or part, or its contents are wrong.
    """
    if task not in NAMES:
        raise ValueError(f"Unknown task '{task}', expected {', '.join(NAMES)}.")
    rows = hub.load(task, part, data=data, subset=subset)
    first: list[str] = rows["first"][:]
    texts = first
    if "second" in rows.column_names:
        texts = list(zip(first, rows["second"][:], strict=True))
    hint = "GLUE's own test parts have no labels: is it one of those?"
    return Sentences(tuple(texts), *hub.labels(rows, task, part=part, hint=hint))


def parts(task: str) -> tuple[str, ...]:
    """Return the parts of a task, as `load` calls them."""
    return tuple(sources.find(task).parts)


def scores(task: str) -> dict[str, Score]:
    """Return the metrics of a task beside its accuracy.

    It is "matthews" for CoLA and "f1" for MRPC; nothing for the others.

    Args:
      task: One of `TASKS`.
    """
    names = sources.find(task).metrics
    return {name: _SCORES[name] for name in names if name != "accuracy"}


def matthews(predictions: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"]) -> float:
    """Return Matthews' correlation of two classes with their predictions.

        (tp tn - fp fn) / sqrt((tp + fp) (tp + fn) (tn + fp) (tn + fn))

    It is 0 where the denominator is.
    """
    tp, fp, fn, tn = _counts(predictions, labels)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def f1(predictions: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"]) -> float:
    """Return 2 tp / (2 tp + fp + fn) of class 1; 0 without true positives."""
    tp, fp, fn, _ = _counts(predictions, labels)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


_SCORES = {"matthews": matthews, "f1": f1}


def _counts(
    predictions: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"]
) -> tuple[int, int, int, int]:
    """Count the true and false positives, and the false and true negatives."""
    # As Python's integers: the product of four counts is too large for NumPy's.
    pairs = ((1, 1), (1, 0), (0, 1), (0, 0))
    tp, fp, fn, tn = (int(np.sum((predictions == p) & (labels == y))) for p, y in pairs)
    return tp, fp, fn, tn
