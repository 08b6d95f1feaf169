"""The learning rates chosen by validation, and those at an end of the grid."""

from collections.abc import Iterable

from train.experiments import choice
from train.experiments.names import label
from train.experiments.results import Files
from train.experiments.rows import TASKS, Row
from train.experiments.tables.table import Table, source


def tables(files: Files) -> list[Table]:
    """Return the chosen rate of each method and policy on each task."""
    rows = files.file("trained").rows
    best = choice.rates(rows)
    found = {x.trained_on for x in rows}
    columns = [x for x in TASKS if x in found]
    result = []
    for (method, policy), grid in _tried(rows).items():
        chosen = [best.get((x, method, policy)) for x in columns]
        name = f"{label(method)} {policy}".strip()
        result.append([name, *(_shown(x, grid) for x in chosen), _range(grid)])
    return [
        Table(
            title="Learning rates, chosen on the validation part",
            columns=["method", *columns, "tried"],
            rows=result,
            notes=[
                "* an end of what was tried: a better rate may lie beyond it.",
                source(files, "trained"),
            ],
        )
    ]


def _tried(rows: Iterable[Row]) -> dict[tuple[str, str], set[float]]:
    """Return the rates of the search, by method and policy.

    A model of many ranks is searched at one of them, and the others use its rate.
    """
    tried: dict[tuple[str, str], dict[str, set[float]]] = {}
    for x in rows:
        by_task = tried.setdefault((x.method, x.policy), {})
        by_task.setdefault(x.trained_on, set()).add(x.learning_rate)
    searched = {k for k, v in tried.items() if any(len(x) > 1 for x in v.values())}
    methods = {method for method, _ in searched}
    return {
        key: set.union(*by_task.values())
        for key, by_task in tried.items()
        if key in searched or key[0] not in methods
    }


def _range(grid: set[float]) -> str:
    ends = sorted({min(grid), max(grid)})
    return " to ".join(map(_power, ends))


def _shown(rate: float | None, grid: set[float]) -> str:
    if rate is None:
        # At an end of the grid, a better rate may lie outside.
        return "–"
    end = len(grid) > 1 and rate in (min(grid), max(grid))
    return f"{_power(rate)}{'*' if end else ''}"


def _power(rate: float) -> str:
    """Format a rate with two digits and a power of ten, such as `3e-4` and `1.6e-2`."""
    digits, power = f"{rate:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"
