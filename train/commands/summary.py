"""The demo's table: cost and accuracy of each adapter."""

import dataclasses
from collections.abc import Sequence

import rich.box
import rich.table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One adapter.

    Attributes:
      name: The adapter's policy.
      average_rank: Over the modules that the parent adapts.
      max_rank: The rank to reserve in a server.
      parameters: The number of parameters in the LoRA factors.
      size: The bytes of its file, all that is stored beside the factors included.
      energy: The kept share of the sum of squared singular values, 0 to 1.
      accuracy: 0 to 1.
    """

    name: str
    average_rank: float
    max_rank: int
    parameters: int
    size: int
    energy: float
    accuracy: float


def table(rows: Sequence[Row], *, title: str) -> rich.table.Table:
    """Return a table of at most 80 columns; the first row is the parent."""
    result = rich.table.Table(
        title=title,
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    result.add_column("adapter", no_wrap=True)
    for name in (
        "mean\nrank",
        "max\nrank",
        "parameters",
        "file",
        "energy",
        "accuracy",
        "change,\npoints",
    ):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        points = 100 * (row.accuracy - rows[0].accuracy)
        result.add_row(
            row.name,
            f"{row.average_rank:.2f}",
            str(row.max_rank),
            f"{row.parameters:,}",
            f"{row.size / 1000:,.0f} kB",
            f"{row.energy:.1%}",
            f"{row.accuracy:.2%}",
            "" if row is rows[0] else f"{points:+.2f}",
        )
    return result
