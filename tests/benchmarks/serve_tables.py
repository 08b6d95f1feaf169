"""Format the measurements of serving as tables, for a terminal and for Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.benchmarks.serve_rows import Memory, Result, Step, Swap

GIGABYTES = (1, 10)


class Table(NamedTuple):
    """Rows of cells under a title; the first `words` columns are text."""

    title: str
    words: int
    lines: Sequence[Sequence[str]]


def text(result: Result) -> str:
    """Format all tables in aligned columns."""
    blocks = [*("\n".join(_columns(x)) for x in tables(result)), note(result)]
    return "\n\n".join(blocks)


def markdown(result: Result) -> str:
    """Format all tables as GitHub's Markdown."""
    blocks = []
    for title, words, (heads, *lines) in tables(result):
        sides = [":--" if i < words else "--:" for i in range(len(heads))]
        rows = "\n".join(map(_bars, [heads, sides, *lines]))
        blocks.append(f"**{title}**\n\n{rows}")
    return "\n\n".join([*blocks, note(result)])


def tables(result: Result) -> Iterator[Table]:
    """Yield the tables of memory and swaps, and one table of batches per model."""
    if result.memory:
        yield _memory(result.memory)
    if result.swaps:
        yield _swaps(result.swaps)
    for model in dict.fromkeys(x.model for x in result.steps):
        yield _steps([x for x in result.steps if x.model == model])


def note(result: Result) -> str:
    """Return the place of the measurements, and the agreement of the ways."""
    worst = max((x.error for x in result.misses), default=0)
    return (
        f"{result.place['device']}, {result.place['versions']}. The ways differ from "
        f"plain products in NumPy by {worst:.0e} at most, in the precision timed. "
        f"'16 of 4' are 16 rows of 4 tenants: ms for the batch, throughput relative to "
        f"base in the same rounds, and its quartiles."
    )


def _memory(rows: Sequence[Memory]) -> Table:
    parents = {x.model: x.bytes for x in rows if x.layout == "parent"}
    fit = [f"in {x} GB" for x in GIGABYTES]
    lines = [["model", "adapter", "MB", "of parent", *fit, "allocated"]]
    for x in rows:
        fits = [f"{int(gb * 1e9 // x.bytes):,}" for gb in GIGABYTES]
        share = f"{x.bytes / parents[x.model]:.0%}"
        took = "" if x.allocated is None else f"{x.allocated:.3f}"
        lines.append([x.model, x.layout, three(x.bytes / 1e6), share, *fits, took])
    return Table("One tenant's adapter, and how many fit beside the model", 2, lines)


def _swaps(rows: Sequence[Swap]) -> Table:
    lines = [["model", "adapter", "travels as", "modules", "MB", "transfer", "swap"]]
    for x in rows:
        cells = [x.model, x.layout, x.form, str(x.modules), three(x.bytes / 1e6)]
        lines.append([*cells, three(x.transfer_ms), three(x.ms)])
    return Table("From host memory into the bank, ms", 3, lines)


def _steps(rows: Sequence[Step]) -> Table:
    batches = sorted({(x.rows, x.present) for x in rows})
    found = {(x.label, x.rows, x.present): x for x in rows}
    lines = [["way", *(f"{r} of {p}" for r, p in batches)]]
    for label in dict.fromkeys(x.label for x in rows):
        mine = [found.get((label, *x)) for x in batches]
        lines.append([label, *("" if x is None else _shared(x) for x in mine)])
    first = rows[0]
    title = (
        f"{first.model}, {first.dtype}, {first.modules} modules, {first.tenants} "
        f"tenants in the bank, tokens a row: {first.tokens}"
    )
    return Table(title, 1, lines)


def _shared(step: Step) -> str:
    if step.adapters == "none":
        return three(step.ms)
    span = f"{100 * step.low:.0f}-{100 * step.high:.0f}"
    return f"{three(step.ms)}, {step.throughput:.0%} ({span})"


def three(x: float) -> str:
    """Format three digits, or all before the decimal point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _columns(table: Table) -> Iterator[str]:
    widths = [max(map(len, x)) for x in zip(*table.lines, strict=True)]
    yield table.title
    for line in table.lines:
        cells = [
            x.ljust(w) if i < table.words else x.rjust(w)
            for i, (x, w) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _bars(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
