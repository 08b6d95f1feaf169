"""A block for table A: further metrics of GLUE's tasks, beside the accuracy."""

from collections.abc import Mapping

from train.experiments.measured import Measured
from train.experiments.tables.table import Table, percent


def tables(found: Mapping[str, Measured]) -> list[Table]:
    """Return one table, or none without further measures.

    Args:
      found: By the name of the table's row.
    """
    columns = list(dict.fromkeys(name for x in found.values() for name in x.measures))
    if not columns:
        return []
    rows = [
        [
            name,
            *(percent(x.measures[y]) if y in x.measures else "-" for y in columns),
        ]
        for name, x in found.items()
    ]
    return [
        Table(
            title="Table A: what GLUE reports beside the accuracy",
            columns=["method", *columns],
            rows=rows,
            notes=["Times 100. No mean has these numbers; nothing was chosen by them."],
        )
    ]
