"""Fill generated tables into Markdown files, in place, between two comments.

<!-- table a -->
...
<!-- /table a -->

Tables of results in a folder within `train/results` name that folder in their marks:
`table vision/a`.
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
    """Return the names of the tables with a place in a document."""
    return [match["name"] for match in _MARKED.finditer(text)]


def mark(name: str, folder: pathlib.Path) -> str:
    """Return the name in the marks of a table of the results in `folder`."""
    inside = os.path.relpath(folder.resolve(), FOLDER.resolve())
    return name if inside == os.curdir else f"{inside}/{name}"


def body(marked: str) -> str:
    """Return the Markdown of one table, by the name in its marks.

    Raises:
      Missing: if the results do not suffice.
      ValueError: if they are corrupt.
    """
    inside, _, name = marked.rpartition("/")
    return markdown(TABLES[name](Files(FOLDER / inside)))


def filled(text: str, bodies: Mapping[str, str]) -> str:
    """Fill tables into their places in a document, and leave others unchanged."""

    def fill(match: re.Match[str]) -> str:
        if match["name"] not in bodies:
            return match[0]
        return f"{match['begin']}\n{bodies[match['name']]}\n\n{match['end']}"

    return _MARKED.sub(fill, text)


def write(bodies: Mapping[str, str]) -> list[pathlib.Path]:
    """Write tables to their places, and return the documents that changed.

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
