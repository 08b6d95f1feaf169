"""Markdown files whose tables are generated, in place, between two comments.

<!-- table a -->
...
<!-- /table a -->

The marks of results in a folder within `train/results` say so: `table vision/a`.
"""

import os
import pathlib
import re
from collections.abc import Mapping

from train.experiments.results import FOLDER, Files
from train.experiments.tables import TABLES
from train.experiments.tables.table import markdown

DOCUMENTS = (
    FOLDER.parent.parent / "docs" / "results.md",
    FOLDER / "README.md",
    *sorted(FOLDER.glob("*/README.md")),
)
"""The files that have tables."""

_MARKED = re.compile(
    r"(?P<begin><!-- table (?P<name>\S+) -->\n).*?(?P<end><!-- /table (?P=name) -->)",
    re.DOTALL,
)


def tables(text: str) -> list[str]:
    """Returns the names of the tables that a document has a place for."""
    return [match["name"] for match in _MARKED.finditer(text)]


def mark(name: str, folder: pathlib.Path) -> str:
    """Returns what the marks of a table of the results in `folder` call it."""
    inside = os.path.relpath(folder.resolve(), FOLDER.resolve())
    return name if inside == os.curdir else f"{inside}/{name}"


def body(marked: str) -> str:
    """Returns the Markdown of one table, by what its marks call it.

    Raises:
      Missing: if the results do not suffice.
      ValueError: if they are corrupt.
    """
    inside, _, name = marked.rpartition("/")
    return markdown(TABLES[name](Files(FOLDER / inside)))


def filled(text: str, bodies: Mapping[str, str]) -> str:
    """Returns the document with tables in their places; others stay as they are."""

    def fill(match: re.Match[str]) -> str:
        if match["name"] not in bodies:
            return match[0]
        return f"{match['begin']}\n{bodies[match['name']]}\n\n{match['end']}"

    return _MARKED.sub(fill, text)


def write(bodies: Mapping[str, str]) -> list[pathlib.Path]:
    """Writes tables to their places, and returns the documents that changed.

    Raises:
      ValueError: if a table has no place in any document.
    """
    texts = {path: path.read_text() for path in DOCUMENTS if path.is_file()}
    places = {name for text in texts.values() for name in tables(text)}
    if homeless := bodies.keys() - places:
        name = min(homeless)
        raise ValueError(
            f"No place for table '{name}' in {', '.join(map(str, DOCUMENTS))}: add the "
            f"lines <!-- table {name} --> and <!-- /table {name} -->."
        )
    changed = []
    for path, text in texts.items():
        if (new := filled(text, bodies)) != text:
            path.write_text(new)
            changed.append(path)
    return changed
