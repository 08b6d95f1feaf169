"""Hold measurements as rows, and write them as JSON, text or Markdown."""

import dataclasses
import io
import json
import pathlib
import textwrap
from collections.abc import Iterable, Sequence

COLUMNS = ("method", "ms", "of floor", "first ms", "peak MB", "sigma", "product")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one case.

    Attributes:
      case: Its name.
      modules: The number of kernels that the adapter changes.
      rank: The rank of each.
      bytes: The adapter's size.
      method: The method's name.
      dtype: The storage dtype of the factors.
      device: Its name.
      versions: The versions of the libraries.
      bandwidth: Bytes a second that a copy reads and writes.
      floor_ms: The time to read all factors twice and to write the kept part once.
      ms: The time of a warm call.
      ratio: `ms / floor_ms`.
      first_ms: The time of the first call: trace, compile, run.
      peak_bytes: The most bytes in use on the device.
      sigma_error: The largest relative error of the kept singular values.
      product_error: The relative error of the kept products, in the Frobenius norm.
      scaled: Whether only a part was run, and its time scaled up to the whole.
      note: Why there is no time.
    """

    case: str
    modules: int
    rank: int
    bytes: int
    method: str
    dtype: str
    device: str
    versions: str
    bandwidth: float
    floor_ms: float
    ms: float | None = None
    ratio: float | None = None
    first_ms: float | None = None
    peak_bytes: int | None = None
    sigma_error: float | None = None
    product_error: float | None = None
    scaled: bool = False
    note: str = ""

    @property
    def is_first(self) -> bool:
        """Whether `ms` is the time of the first call, including compilation."""
        return self.ms is not None and self.ms == self.first_ms


def save(path: pathlib.Path, rows: Sequence[Row]) -> None:
    path.write_text(json.dumps([dataclasses.asdict(x) for x in rows], indent=1) + "\n")


def load(path: pathlib.Path) -> list[Row]:
    return [Row(**x) for x in json.loads(path.read_text())]


def line(row: Row) -> str:
    """Format one row for a terminal."""
    name = f"{row.case:15} {row.dtype:8} {row.method:11}"
    if row.ms is None:
        return f"{name} {row.note}"
    cells = dict(zip(COLUMNS, _cells(row), strict=True))
    return f"{name} {cells['ms']:>9} ms {cells['of floor']:>9} of floor"


def text(rows: Sequence[Row]) -> str:
    """Format a table of 80 columns, with one block per case."""
    import rich.box
    import rich.console
    import rich.table

    shown = io.StringIO()
    console = rich.console.Console(file=shown, width=80)
    for block in blocks(rows):
        table = rich.table.Table(
            title=title(block[0]),
            title_justify="left",
            title_style="bold",
            box=rich.box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for i, name in enumerate(COLUMNS):
            table.add_column(name, justify="right" if i else "left", no_wrap=True)
        for row in block:
            table.add_row(*_cells(row))
        console.print(table)
    lines = [x.rstrip() for x in shown.getvalue().splitlines()]
    below = [textwrap.fill(x, 80, subsequent_indent="  ") for x in notes(rows)]
    return "\n".join([*lines, *below])


def markdown(rows: Sequence[Row]) -> str:
    """Format the rows as GitHub's Markdown."""
    lines = []
    for block in blocks(rows):
        lines += [f"**{title(block[0])}**", ""]
        lines += [_bars(COLUMNS), _bars([":--", *["--:"] * (len(COLUMNS) - 1)])]
        lines += [*(_bars(_cells(row)) for row in block), ""]
    return "\n".join([*lines, *notes(rows)])


def blocks(rows: Sequence[Row]) -> list[list[Row]]:
    """Group the rows by case and dtype."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.case, row.dtype), []).append(row)
    return list(found.values())


def title(row: Row) -> str:
    return (
        f"{row.case}, {row.dtype}: {row.modules} modules of rank {row.rank}, "
        f"{row.bytes / 1e6:,.0f} MB, floor {_three(row.floor_ms)} ms"
    )


def notes(rows: Sequence[Row]) -> list[str]:
    """Return the place of the measurements, and the reasons for missing ones."""
    where = dict.fromkeys((x.device, x.versions, x.bandwidth) for x in rows)
    lines = [f"{d}, {v}; a copy moves {b / 1e9:,.0f} GB/s." for d, v, b in where]
    if any(x.scaled for x in rows):
        lines.append("~ a part was run, and its time scaled up to the whole.")
    if any(x.is_first for x in rows):
        lines.append("< the first call alone, which took longer than a row may.")
    missing = dict.fromkeys(f"{x.method}: {x.note}." for x in rows if x.ms is None)
    return [*lines, *missing]


def _cells(row: Row) -> list[str]:
    megabytes = None if row.peak_bytes is None else row.peak_bytes / 1e6
    shown = _about if row.scaled else _below if row.is_first else _three
    return [
        row.method,
        *("" if x is None else shown(x) for x in (row.ms, row.ratio, row.first_ms)),
        "" if megabytes is None else _three(megabytes),
        *(
            "" if x is None else f"{x:.0e}"
            for x in (row.sigma_error, row.product_error)
        ),
    ]


def _below(x: float) -> str:
    return f"<{_three(x)}"


def _about(x: float) -> str:
    """Format an estimate with two digits."""
    return f"~{_three(float(f'{x:.2g}'))}"


def _three(x: float) -> str:
    """Format three digits, or all before the decimal point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _bars(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
