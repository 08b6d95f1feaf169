"""The learning rates that the validation part chose, and which end the grid has."""

from train.experiments import choice
from train.experiments.measured import tasks
from train.experiments.names import label
from train.experiments.results import Files
from train.experiments.tables.table import Table, source


def tables(files: Files) -> list[Table]:
    """Returns the chosen rate of each method and policy on each task."""
    rows = files.file("trained").rows
    best = choice.rates(rows)
    tried: dict[tuple[str, str], set[float]] = {}
    for x in rows:
        tried.setdefault((x.method, x.policy), set()).add(x.learning_rate)
    columns = tasks(rows)
    return [
        Table(
            title="Learning rates, chosen on the validation part",
            columns=["method", *columns, "tried"],
            rows=[
                [
                    f"{label(method)} {policy}".strip(),
                    *(_shown(best.get((x, method, policy)), grid) for x in columns),
                    " ".join(f"{x:g}" for x in sorted(grid)),
                ]
                for (method, policy), grid in tried.items()
            ],
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
    return f"{rate:g}{'*' if end else ''}"
