"""Tables of 80 columns, and progress, on the terminal.

Rich is an extra: it is imported in the functions, and the library does without it.
"""

import contextlib
import io
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from para_jax._fleet.manifest import Row
from para_jax._pruning.batches import Progress
from para_jax._pruning.inspect import Inspection
from para_jax._pruning.report import Report, human_bytes

if TYPE_CHECKING:
    import rich.table

    from para_jax._engines.prepare import Cost

_WIDTH = 80
_SHOWN = 20  # Failures; the manifest has all.


def check() -> None:
    """Raise ModuleNotFoundError before any work if no table could be shown."""
    import rich  # noqa: F401


def _is_watched() -> bool:
    """Decide whether Rich may find a terminal, without importing it."""
    forced = {"FORCE_COLOR", "TTY_COMPATIBLE"} & os.environ.keys()
    return bool(forced) or sys.stderr.isatty()


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner on the terminal's error stream while the body runs."""
    if not _is_watched():
        yield
        return
    import rich.console

    with rich.console.Console(stderr=True).status(what):
        yield


@contextlib.contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show the progress of the loops in the body on the terminal's error stream.

    Yields:
      A function to wrap each loop in. It shows nothing without a terminal.
    """
    if not _is_watched():
        yield iter
        return
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.SpinnerColumn(),
        *rich.progress.Progress.get_default_columns(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as shown:
        yield lambda items: shown.track(items, description=what)


@contextlib.contextmanager
def tenants(total: int) -> Iterator[Callable[[Iterable[Row]], Iterator[Row]]]:
    """Show how many tenants are done, how many a second, and the time left.

    Yields:
      A function to wrap the loop over them in. It shows nothing without a terminal.
    """
    if not _is_watched():
        yield iter
        return
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("Compressing {task.total:,} tenants"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]:.1f}/s"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("", total=total, rate=0.0)

        # Rich's own speed is of the last seconds, and jumps with every batch.
        def counted(rows: Iterable[Row]) -> Iterator[Row]:
            start = time.perf_counter()
            for done, row in enumerate(rows, 1):
                yield row
                rate = done / (time.perf_counter() - start)
                shown.update(task, completed=done, rate=rate)

        yield counted


def inspection(found: Inspection) -> None:
    """Print the modules of an adapter and how fast their spectra fall."""
    shares = [f"{100 * x:g}%" for x in found.shares]
    # Modules differ in the end of their paths; the terminal has no room for the rest.
    shared = os.path.commonpath([x.path.rpartition("/")[0] for x in found.rows])
    table = _table(
        ["module", "m x n", "r", "scale", "largest", *shares],
        [
            (
                _shortened(x.path.removeprefix(f"{shared}/"), 28),
                f"{x.inputs}x{x.outputs}",
                str(x.rank),
                f"{x.scale:.3g}",
                f"{x.largest:.3g}",
                *map(str, x.needed),
            )
            for x in found.rows
        ],
    )
    if shared:
        print(f"Modules of {_shortened(shared, 68)}/")
    _print(table)
    total, count = found.report.total_rank, len(found.rows)
    print(
        f"{count} module{'s' * (count > 1)}, {total} ranks, "
        f"{found.parameters:,} parameters, "
        f"{human_bytes(found.bytes)} of {', '.join(found.dtypes)}"
    )
    for share, rank in zip(shares, found.needed, strict=True):
        print(f"{share:>6} of all energy: {rank} ranks, {rank / count:.2f} on average")
    for note in found.notes:
        print(wrapped(note))
    if found.extra:
        example = _shortened(found.extra[-1], 45)
        print(f"{len(found.extra)} other tensors, such as {example}")


def engines(paid: "Sequence[Cost]") -> None:
    """Print one row an engine: the form it reads, and its costs for an adapter."""
    taken = [x for x in paid if not x.refused]
    _print(
        _table(
            ["engine", "format", "profile", "rank", "file", "of ragged", "memory"],
            [
                (
                    x.engine,
                    x.format,
                    x.profile if x.format == "peft" else "",
                    f"{x.rank}"
                    if x.rank == x.allocated
                    else f"{x.rank} in {x.allocated}",
                    human_bytes(x.bytes),
                    f"{x.bytes / x.ragged:.2f}",
                    human_bytes(x.memory),
                )
                for x in taken
            ],
        )
    )
    for x in paid:
        if x.refused:
            print(wrapped(x.refused))


def children(rows: Sequence[tuple[str, Report, str]]) -> None:
    """Print one row a child: its name, kept ranks and energy, and size on disk."""
    _print(
        _table(
            ["child", "ranks", "avg", "max", "parameters", "kept", "on disk", "energy"],
            [
                (
                    name,
                    str(x.kept_rank),
                    f"{x.average_rank:.2f}",
                    str(x.max_rank),
                    f"{x.parameters:,}",
                    f"{x.parameters / x.parent_parameters:.1%}",
                    size,
                    f"{x.energy:.2%}",
                )
                for name, x, size in rows
            ],
        )
    )


def fleet(children: Sequence[Row], summary: Mapping[str, Any]) -> None:
    """Print the spread of a fleet's children, and the counts of its tenants.

    Args:
      children: The rows of the tenants with a child.
      summary: The counts, as the command's JSON has them.
    """
    if children:
        middle = len(children) // 2
        columns = [sorted(x) for x in zip(*map(_numbers, children), strict=True)]
        rows = [("least", 0), ("median", middle), ("most", -1)]
        _print(
            _table(
                ["of all", "avg", "max", "parameters", "kept", "on disk", "energy"],
                [(name, *_cells([x[i] for x in columns])) for name, i in rows],
            )
        )
    size = human_bytes(sum(x.bytes for x in children))
    seconds, written = summary["seconds"], summary["written"]
    print(
        f"{summary['tenants']:,} tenants: {written:,} compressed, "
        f"{summary['there']:,} there already, {len(summary['failed']):,} failed."
    )
    print(f"Took {seconds:.1f} s, {written / seconds:.1f} tenants/s. {size} on disk.")
    # A wrong word fails every tenant: a thousand lines of it would hide the counts.
    failed = list(summary["failed"].items())
    for name, failure in failed[:_SHOWN]:
        print(wrapped(f"{name}: {failure}"))
    if len(failed) > _SHOWN:
        print(f"... and {len(failed) - _SHOWN:,} more.")
    if others := summary["passed_over"]:
        text = f"{len(others):,} that the pattern matches are no adapters, such as"
        print(wrapped(f"{text} '{others[0]}'."))
    print(f"Every tenant is in {summary['manifest']}.")


def _numbers(row: Row) -> tuple[float, ...]:
    x = row.kept
    share = x["parameters"] / x["parent_parameters"]
    energy = x["energy"]
    return (
        *(x["average_rank"], x["max_rank"], x["parameters"]),
        *(share, row.bytes, energy),
    )


def _cells(values: Sequence[float]) -> tuple[str, ...]:
    average, most, parameters, share, size, energy = values
    return (
        *(f"{average:.2f}", f"{most}", f"{parameters:,}"),
        *(f"{share:.1%}", human_bytes(size), f"{energy:.2%}"),
    )


def wrapped(text: str, indent: int = 2) -> str:
    """Wrap lines to the tables' width, with a hanging indent and words unbroken."""
    lines = (
        textwrap.fill(
            line,
            _WIDTH,
            subsequent_indent=" " * indent,
            # Paths and flags are copied from the terminal: they stay in one piece.
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )
    return "\n".join(lines)


def _table(
    columns: Sequence[str], rows: Iterable[tuple[str, ...]]
) -> "rich.table.Table":
    import rich.box
    import rich.table

    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _print(table: "rich.table.Table") -> None:
    import rich.console

    # Always the same width: a narrow terminal breaks lines, but loses no column.
    # Rich turns a broken pipe into an exit: in a buffer it meets none, and `main` does.
    encoding = sys.stdout.encoding or "utf-8"  # None where it is an io.StringIO.
    shown = io.TextIOWrapper(io.BytesIO(), encoding)
    rich.console.Console(file=shown, width=_WIDTH).print(table)
    shown.flush()
    lines = shown.buffer.getvalue().decode(encoding).splitlines()
    print("\n".join(line.rstrip() for line in lines))


def _shortened(text: str, width: int) -> str:
    """Shorten a text to its two ends."""
    half = (width - 3) // 2
    return text if len(text) <= width else f"{text[:half]}...{text[-half:]}"
