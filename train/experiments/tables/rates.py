"""The learning rates that the validation part chose, and which end the grid has."""

from train.experiments import choice
from train.experiments.names import label
from train.experiments.results import Files
from train.experiments.rows import TASKS
from train.experiments.tables.table import Table, source


def tables(files: Files) -> list[Table]:
    """Returns the chosen rate of each method and policy on each task."""
    rows = files.file("trained").rows
    best = choice.rates(rows)
    tried: dict[tuple[str, str], set[float]] = {}
    for x in rows:
        tried.setdefault((x.method, x.policy), set()).add(x.learning_rate)
    found = {x.trained_on for x in rows}
    columns = [x for x in TASKS if x in found]
    result = []
    for (method, policy), grid in tried.items():
        chosen = [best.get((x, method, policy)) for x in columns]
        if grid <= set(chosen):  # One model of many ranks: chosen at another rank.
            continue
        result.append(
            [
                f"{label(method)} {policy}".strip(),
                *(_shown(x, grid) for x in chosen),
                f"{_power(min(grid))} to {_power(max(grid))}",
            ]
        )
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


def _shown(rate: float | None, grid: set[float]) -> str:
    if rate is None:
        return "–"
    end = len(grid) > 1 and rate in (min(grid), max(grid))
    return f"{_power(rate)}{'*' if end else ''}"


def _power(rate: float) -> str:
    """Returns a rate as a digit and a power of ten, such as `3e-4`."""
    return f"{rate:.0e}".replace("e-0", "e-")
