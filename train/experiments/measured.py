"""Measurements of one method under one policy: on each task, and on average."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from train.experiments import statistics
from train.experiments.missing import Missing
from train.experiments.rows import TASKS, Row
from train.experiments.statistics import Interval, Sample

MEAN = "mean"
"""The column beside the tasks."""


class Measured(NamedTuple):
    """One method under one policy.

    Attributes:
      accuracy: By task, and then `mean`: a number for each seed.
      rank: The average rank, over tasks and seeds.
      params: The parameters of the LoRA factors, over tasks and seeds.
      measures: Further measures, by task and name, such as `cola, matthews`: a
        number for each seed.
    """

    accuracy: Mapping[str, Sample]
    rank: float
    params: float
    measures: Mapping[str, Sample]

    @property
    def columns(self) -> tuple[str, ...]:
        """The tasks, and the mean of several."""
        names = tuple(self.accuracy)
        return names if len(names) > 2 else names[:1]


def tasks(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the tasks of the rows, in the order of every table."""
    found = {row.task for row in rows}
    # In the order of TASKS, not of the files.
    return tuple(task for task in TASKS if task in found)


def policies(rows: Iterable[Row], method: str, kind: str) -> list[str]:
    """Return the policies of a kind, such as `rank`, from the largest value down."""
    found = {x.policy for x in rows if x.method == method}
    # Two words: `rank 4 steps 0.1` is a policy of another kind.
    found = {x for x in found if x.split(" ")[0] == kind and len(x.split(" ")) == 2}
    return sorted(found, key=value, reverse=True)


def value(policy: str) -> float:
    """Return the number in a policy: 0.25 of `params 0.25`.

    Raises:
      ValueError: if it has none.
    """
    try:
        return float(policy.split(" ")[1])
    except (IndexError, ValueError):
        raise ValueError(
            f"Policy '{policy}' has no value, expected a word and a number, such as "
            "'rank 4'."
        ) from None


def has(rows: Iterable[Row], method: str, policy: str) -> bool:
    """Test whether there are rows of this method and policy."""
    return any(x.method == method and x.policy == policy for x in rows)


def partial(rows: Iterable[Row], method: str, policy: str) -> dict[str, float]:
    """Return the mean accuracies by task, if the method lacks a task of the rows.

    Empty if it has all tasks, or no rows.
    """
    rows = list(rows)
    mine = [x for x in rows if x.method == method and x.policy == policy]
    if tasks(mine) == tasks(rows):
        return {}
    found: dict[str, list[float]] = {task: [] for task in tasks(mine)}
    for row in mine:
        if row.accuracy is not None:
            found[row.task].append(row.accuracy)
    return {task: float(np.mean(x)) for task, x in found.items()}


def measure(rows: Sequence[Row], method: str, policy: str) -> Measured:
    """Summarise the rows of one method and policy.

    Raises:
      Missing: if there are none, or none of a task that others were measured on.
      ValueError: if a model was not evaluated on the test part.
    """
    mine = [x for x in rows if x.method == method and x.policy == policy]
    what = f"method '{method}', policy '{policy}'"
    if not mine:
        raise Missing(f"There are no results of {what}.", what=f"no {method} {policy}")
    for task in tasks(rows):
        if not any(x.task == task for x in mine):
            raise Missing(
                f"There are no results of {what} on task '{task}'.",
                what=f"no {method} {policy} on {task}",
            )
    for row in mine:
        if row.accuracy is None:
            raise ValueError(
                f"There is no test accuracy of {what}, task '{row.task}', seed "
                f"{row.seed}, learning rate {row.learning_rate:g}: evaluate it."
            )
    accuracy: dict[str, Sample] = {
        task: {
            x.seed: x.accuracy
            for x in mine
            if x.task == task and x.accuracy is not None
        }
        for task in tasks(rows)
    }
    # Averaged by seed, so that differences can be paired.
    accuracy[MEAN] = statistics.average(list(accuracy.values()))
    return Measured(
        accuracy=accuracy,
        rank=float(np.mean([x.average_rank for x in mine])),
        params=float(np.mean([x.params for x in mine])),
        measures=_measures(mine),
    )


def _measures(rows: Sequence[Row]) -> dict[str, Sample]:
    """Return the further measures of one method and policy, beside the accuracy."""
    found: dict[str, dict[int, float]] = {}
    for task in tasks(rows):
        for row in rows:
            for name, x in (row.measures or {}).items() if row.task == task else ():
                found.setdefault(f"{task}, {name}", {})[row.seed] = x
    return dict(found)


def columns(found: Iterable[Measured]) -> tuple[str, ...]:
    """Return the columns of all, which must be the same.

    Raises:
      Missing: if they were measured on different tasks.
    """
    first, *others = [x.columns for x in found]
    for other in others:
        if other != first:
            raise Missing(
                f"Means over different tasks cannot be compared: {', '.join(first)} "
                f"and {', '.join(other)}.",
                what="no means over equal tasks",
            )
    return first


def differences(left: Measured, right: Measured) -> dict[str, Interval]:
    """Return the interval of `left - right`, paired by seed, for each column.

    Raises:
      Missing: if the two were measured on different tasks.
    """
    columns([left, right])
    return {
        column: statistics.paired(left.accuracy[column], right.accuracy[column])
        for column in left.accuracy
    }
