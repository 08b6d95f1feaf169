"""Generate the layout table of `docs/layouts.md` from the tests that prove its cells.

    python -m tests.layouts

runs every test that carries the mark `layout(name, column)` and prints, as Markdown,
the columns that hold for each layout: `yes` if all of a cell's tests pass, `FAILS` if
one does not, and a dash if there is none.
"""

import contextlib
import io
import sys
from collections import defaultdict

import pytest

COLUMNS = ("found", "compressed", "put back", "forward", "to PEFT")
TITLES = {"forward": "its own forward agrees"}


class Cells:
    """Collect the outcomes of marked tests by cell, as a pytest plugin."""

    def __init__(self):
        self.cells = defaultdict(list)
        self.outcomes = defaultdict(list)

    def pytest_collection_modifyitems(self, items):
        for item in items:
            for mark in item.iter_markers("layout"):
                name, *columns = mark.args
                if not columns or set(columns) - set(COLUMNS):
                    raise pytest.UsageError(f"{item.nodeid}: {mark.args} is no cell")
                for column in columns:
                    self.cells[name, column].append(item.nodeid)

    def pytest_runtest_logreport(self, report):
        self.outcomes[report.nodeid].append(report.outcome)

    def cell(self, name, column):
        tests = self.cells.get((name, column), [])
        if not tests:
            return "-"
        outcomes = {x for test in tests for x in self.outcomes[test]}
        return "yes" if outcomes == {"passed"} else "FAILS"


def table(cells):
    """Return the Markdown of all cells."""
    names = sorted({name for name, _ in cells.cells}, key=str.lower)
    rows = [["layout", *(TITLES.get(x, x) for x in COLUMNS)]]
    rows += [[name, *(cells.cell(name, x) for x in COLUMNS)] for name in names]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main():
    cells, said = Cells(), io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main(["-q", "-m", "layout", "tests"], plugins=[cells])
    if status:
        print(said.getvalue(), file=sys.stderr)
    print(table(cells))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
