"""The choice of the learning rate, by validation accuracy alone.

Each method gets the same small grid. For each task, method and policy the rate with the
largest mean over seeds is taken, and only its models meet the test part; a task with
several test sets has one rate for all of them. A model that serves several ranks
(DyLoRA) is searched at the target rank only, and all its ranks have that one rate.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from train.experiments.rows import Row

Group = tuple[str, str, str]
"""The training task, method, policy."""

_ROUNDING = 2e-6
"""Means this close are equal: files have six digits."""


def rates(rows: Iterable[Row]) -> dict[Group, float]:
    """Return the learning rate of the largest mean validation accuracy.

    The mean is over the seeds that all rates of the group were tried with. Of equal
    rates it is the one that met the test part, or else the smallest. A group with one
    rate needs no validation.

    Raises:
      ValueError: if rates were tried with no seed in common, or without validation.
    """
    tried: dict[Group, dict[float, dict[int, Row]]]
    tried = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        tried[_group(row)][row.learning_rate][row.seed] = row
    return {group: _best(found, group) for group, found in tried.items()}


def chosen(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with the rate of their group in `rates`."""
    rows = list(rows)
    best = rates(rows)
    return [x for x in rows if x.learning_rate == best[_group(x)]]


def _group(row: Row) -> Group:
    return row.trained_on, row.method, row.policy


def _best(found: Mapping[float, Mapping[int, Row]], group: Group) -> float:
    if len(found) == 1:
        return next(iter(found))
    # Seeds in common, so that a rate does not win by an easier seed.
    seeds = set.intersection(*(set(by_seed) for by_seed in found.values()))
    values = {
        rate: [found[rate][seed].validation for seed in seeds] for rate in sorted(found)
    }
    if not seeds or any(None in x for x in values.values()):
        tried = ", ".join(f"{rate:g}" for rate in values)
        raise ValueError(
            f"No learning rate can be chosen for {' '.join(group)}: {tried} were tried "
            + ("with no seed in common." if not seeds else "without validation.")
        )
    means = {k: sum(x for x in v if x is not None) / len(v) for k, v in values.items()}
    equal = [x for x in means if means[x] > max(means.values()) - _ROUNDING]
    # Of equal rates, one with test results: it was chosen before.
    tested = [
        x for x in equal if any(y.accuracy is not None for y in found[x].values())
    ]
    return (tested or equal)[0]
