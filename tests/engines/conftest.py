"""Tests of real engines on our files. Not part of `make test` or `make test-all`.

An engine's tests are skipped if its environment is missing; `make test-engines` creates
it. A table of all comparisons ends the run; `--engines-results FILE` saves it.
"""

import importlib.util
import json
import pathlib

import pytest

from tests.engines import environments

_HERE = pathlib.Path(__file__).parent
_ORACLES = ("peft", "torch", "transformers")
# As `make test` does without PyTorch.
collect_ignore_glob = [
    "test_*.py" for name in _ORACLES if importlib.util.find_spec(name) is None
]
_ROWS: list[dict] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engines-results",
        metavar="FILE",
        help="a JSON file of what engines made of our files; those run are replaced",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.engines)
        item.add_marker(pytest.mark.timeout(1800))
        engine = item.path.stem.removeprefix("test_")
        if engine in environments.ENVIRONMENTS:
            why = environments.missing(engine)
            item.add_marker(pytest.mark.skipif(bool(why), reason=why))


@pytest.fixture
def row(request):
    """Keep a row of the table, for one engine and version.

    Call it with `engine`, `version`, `loaded` and any of `difference` (the largest, of
    the quantity named by `of`), `tokens` ("16/16"), `refused` (the engine's words).
    """

    def keep(**cells) -> None:
        _ROWS.append(cells | {"test": request.node.nodeid.partition("::")[2]})

    return keep


def pytest_terminal_summary(terminalreporter) -> None:
    if not _ROWS:
        return
    terminalreporter.section("engines")
    for cells in sorted(_ROWS, key=lambda x: (x["engine"], x["loaded"])):
        outcome = cells.get("refused")
        if outcome is None:
            outcome = f"{cells['difference']:.1e}"
        name = f"{cells['engine']} {cells['version']}"
        tokens = cells.get("tokens", "")
        terminalreporter.line(f"{name:24} {cells['loaded']:48} {outcome:>10} {tokens}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--engines-results", default=None)
    if not file or not _ROWS:
        return
    path = pathlib.Path(file)
    kept = json.loads(path.read_text()) if path.exists() else []
    new = {(x["engine"], x["test"]) for x in _ROWS}
    kept = [x for x in kept if (x["engine"], x["test"]) not in new]
    rows = sorted(kept + _ROWS, key=lambda x: (x["engine"], x["loaded"]))
    path.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
