"""The two blocks of most tables: accuracies, and differences."""

from collections.abc import Mapping, Sequence

from train.experiments import measured
from train.experiments.measured import Measured
from train.experiments.tables.table import Table, percent, points, thousands


def accuracies(
    found: Mapping[str, Measured], *, title: str, first: str, notes: Sequence[str] = ()
) -> Table:
    """Return accuracy, rank and parameters of each entry.

    Args:
      found: By the name of the table's row.
      title: The title of the table.
      first: The name of the first column.
      notes: Below the table.
    """
    columns = measured.columns(found.values())
    rows = [
        [
            name,
            *(percent(x.accuracy[column]) for column in columns),
            f"{round(x.rank, 2):g}",
            thousands(x.params),
        ]
        for name, x in found.items()
    ]
    return Table(
        title=title,
        columns=[first, *columns, "rank", "params"],
        rows=rows,
        notes=[*notes, *_seeds(found)],
    )


def differences(
    pairs: Mapping[str, tuple[Measured, Measured]],
    *,
    title: str,
    first: str,
    notes: Sequence[str] = (),
) -> Table:
    """Return the paired intervals of `left - right` of each entry.

    Args:
      pairs: Left and right, by the name of the table's row.
      title: The title of the table.
      first: The name of the first column.
      notes: Below the table.
    """
    # All pairs have equal columns: `differences` below checks it.
    columns = next(iter(pairs.values()))[0].columns
    intervals = {name: measured.differences(*pair) for name, pair in pairs.items()}
    rows = [
        [name, *(points(found[column]) for column in columns)]
        for name, found in intervals.items()
    ]
    return Table(title=title, columns=[first, *columns], rows=rows, notes=notes)


def _seeds(found: Mapping[str, Measured]) -> list[str]:
    """Describe the number of seeds behind the means."""
    counts = {name: len(x.accuracy[measured.MEAN]) for name, x in found.items()}
    # Methods with fewer seeds are named, since their spread is less certain.
    most = max(counts.values())
    fewer = [f"{name}: {n}" for name, n in counts.items() if n < most]
    less = f"; fewer for {', '.join(fewer)}" if fewer else ""
    return [f"Accuracy in %, mean and standard deviation over {most} seeds{less}."]
