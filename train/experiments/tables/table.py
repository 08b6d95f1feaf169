"""A table of text, for the terminal and for Markdown, and its number formats."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import rich.box
import rich.table

from train.experiments import statistics
from train.experiments.results import Files
from train.experiments.statistics import Interval, Sample

MARKS = {1: "▲ ", -1: "▼ ", 0: ""}
"""Marks of an interval: above zero, below zero, or neither."""

INTERVAL = (
    "Differences are in points, with their 95 % interval paired by seed; "
    "▲ above and ▼ below zero with all of it."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One block of text in columns; the first column names the rows.

    Attributes:
      title: The subject of the table.
      columns: Their names.
      rows: The cells, one for each column.
      notes: Sentences below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def markdown(tables: Iterable[Table]) -> str:
    """Format the tables in GitHub's Markdown."""
    lines = []
    for table in tables:
        lines += [f"**{table.title}**", "", _bars(table.columns)]
        lines += [_bars([":--", *["--:"] * (len(table.columns) - 1)])]
        lines += [*map(_bars, table.rows), ""]
        lines += [x for note in table.notes for x in (note, "")]
    return "\n".join(lines).strip()


def terminal(table: Table) -> rich.table.Table:
    """Return the table for `rich` to print."""
    result = rich.table.Table(
        title=table.title,
        title_justify="left",
        caption="\n".join(table.notes) or None,
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for number, name in enumerate(table.columns):
        result.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in table.rows:
        result.add_row(*row)
    return result


def percent(sample: Sample) -> str:
    """Format the mean and the standard deviation of accuracies, as `81.52±.31`."""
    spread = statistics.std(sample)
    shown = "" if math.isnan(spread) else f"±{_short(100 * spread)}"
    return f"{100 * statistics.mean(sample):.2f}{shown}"


def points(interval: Interval) -> str:
    """Format a difference of accuracies and its interval, such as `▲ +0.52±.31`."""
    middle = f"{round(100 * interval.mean, 2) + 0.0:+.2f}"  # 0.0: there is no -0.00.
    if math.isinf(interval.half):
        return middle
    return f"{MARKS[interval.side]}{middle}±{_short(100 * interval.half)}"


def thousands(params: float) -> str:
    """Format a number of parameters, such as `147 k`."""
    return f"{params / 1000:,.0f} k" if params >= 1e4 else f"{params / 1000:.1f} k"


def source(files: Files, *names: str) -> str:
    """Return the sentence about the source of the numbers."""
    made: dict[str, list[str]] = {}
    for name in names:
        head = files.file(name)
        versions = ", ".join(f"{k} {v}" for k, v in head.versions.items())
        how = f"by `{head.command}` at {head.commit}, {head.device}, {versions}"
        made.setdefault(how, []).append(f"`{name}.json`")
    return "; ".join(f"From {', '.join(x)}, {how}" for how, x in made.items()) + "."


def _short(x: float) -> str:
    """Format with two digits below 1, else with one decimal."""
    return f"{x:.2f}".removeprefix("0") if x < 0.995 else f"{x:.1f}"


def _bars(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
