"""Hold the rows of `cold`, and write them as JSON, text or Markdown."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements of one case: medians, in seconds.

    Attributes:
      case: Its name.
      start: A process that only imports JAX.
      copy: The added time to read the parent and to write as many bytes as a child has.
      compress: The process of `para compress`.
      one: One child in memory.
      sixteen: Sixteen children in memory, at once.
      device: Its name.
      versions: The versions of the libraries.
      bandwidth: Bytes a second that a copy in memory reads and writes.
      load: The load average of the last minute at the start.
    """

    case: str
    start: float
    copy: float
    compress: float
    one: float
    sixteen: float
    device: str
    versions: str
    bandwidth: float
    load: float


class Table(NamedTuple):
    """Seconds by case, and the ratio of the last two columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def load(path: pathlib.Path) -> list[Row]:
    """Read the rows written by `save`."""
    return [Row(**x) for x in json.loads(path.read_text())]


def save(path: pathlib.Path, rows: Sequence[Row]) -> None:
    path.write_text(json.dumps([dataclasses.asdict(x) for x in rows], indent=1) + "\n")


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return the tables to show for the rows."""
    processes = ("import jax", "read + write", "sum", "para compress", "ratio")
    return [
        Table(
            "A process from file to file, seconds",
            processes,
            [
                _cells(x.case, x.start, x.copy, x.start + x.copy, x.compress)
                for x in rows
            ],
        ),
        Table(
            "Children in memory, seconds",
            ("one", "sixteen", "ratio"),
            [_cells(x.case, x.one, x.sixteen) for x in rows],
        ),
    ]


def _cells(case: str, *seconds: float) -> list[str]:
    ratio = seconds[-1] / seconds[-2]
    return [case, *(f"{x:.3f}" for x in seconds), f"{ratio:.2f}"]


def text(rows: Sequence[Row]) -> str:
    """Format the tables for a terminal."""
    lines = []
    for title, columns, found in tables(rows):
        lines.append(title)
        for name, *cells in (("", *columns), *found):
            lines += [f"  {name:20}" + "".join(f"{x:>14}" for x in cells)]
    return "\n".join([*lines, *notes(rows)])


def markdown(rows: Sequence[Row]) -> str:
    """Format the tables as GitHub's Markdown."""
    lines = []
    for title, columns, found in tables(rows):
        rule = ":--", *["--:"] * len(columns)
        cells = (title, *columns), rule, *found
        lines += [*(f"| {' | '.join(x)} |" for x in cells), ""]
    return "\n".join([*lines, *notes(rows)])


def notes(rows: Sequence[Row]) -> list[str]:
    """Return the device, the versions and the load of the measurements."""
    where = dict.fromkeys((x.device, x.versions, x.bandwidth, x.load) for x in rows)
    return [
        f"{device}, {versions}; a copy moves {bandwidth / 1e9:,.0f} GB/s; the load at "
        f"the start was {load:.1f}."
        for device, versions, bandwidth, load in where
    ]
