"""Shows files of the repository as pages, and leads links to its other files there.

`repository_pages` in `conf.py` says which page is which file. A page's own text is then
only a pointer, for whoever reads it in the repository. A link to any other file, from
whatever page, leads to `repository_url`. The notebooks are copied from
`build/notebooks`, where `make docs` puts them with their outputs.
"""

import json
import os
import pathlib
import re

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = DOCS / "notebooks"

_LINK = re.compile(
    r"(?P<before>!?\[(?:[^\]\\]|\\.)*\]\()(?P<to>[^)#\s]+)(?P<rest>[^)]*\))"
)
_BADGE = re.compile(r"\[!\[([^]]+)\]\([^)]+\)\]\(([^)]+)\)")
_FENCED = re.compile(r"^(```|~~~).*?^\1\s*$", re.M | re.S)


def moved(text: str, file: pathlib.Path, page: pathlib.Path, app: Sphinx) -> str:
    """Return the text of `file` with its relative links as `page` needs them."""
    pages = {ROOT / x: DOCS / f"{name}.md" for name, x in _pages(app).items()}
    for source in sorted((ROOT / "colabs").glob("*.ipynb")):
        pages[source] = NOTEBOOKS / source.name

    def link(match: re.Match[str]) -> str:
        to = match["to"]
        target = (file.parent / to).resolve()
        if "://" in to or to.startswith(("mailto:", "<")) or not target.exists():
            return match[0]  # What is broken, the build reports.
        target = pages.get(target, target)
        if target.is_relative_to(DOCS) or match["before"].startswith("!"):
            to = pathlib.PurePath(os.path.relpath(target, page.parent)).as_posix()
        else:
            kind = "tree" if target.is_dir() else "blob"
            inside = target.relative_to(ROOT).as_posix()
            to = f"{app.config.repository_url}/{kind}/main/{inside}"
        return match["before"] + to + match["rest"]

    parts, last = [], 0
    for fence in _FENCED.finditer(text):
        parts += [_LINK.sub(link, text[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, _LINK.sub(link, text[last:])])


def _pages(app: Sphinx) -> dict[str, str]:
    return app.config.repository_pages


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    if (page := DOCS / f"{name}.md").is_file():
        file = ROOT / _pages(app).get(name, page)
        app.env.note_dependency(str(file))
        source[0] = moved(file.read_text(), file, page, app)


def _copy_notebooks(app: Sphinx) -> None:
    NOTEBOOKS.mkdir(exist_ok=True)
    for path in sorted((ROOT / "colabs").glob("*.ipynb")):
        run = ROOT / "build" / "notebooks" / path.name
        if not run.is_file():
            logger = logging.getLogger(__name__)
            logger.warning("%s was not executed: use make docs", path.name)
            run = path
        copy, text = NOTEBOOKS / path.name, shown(run.read_text())
        if not copy.is_file() or copy.read_text() != text:
            copy.write_text(text)


def shown(notebook: str) -> str:
    """Return a notebook as a page: no badge, and the cell that installs folded."""
    whole = json.loads(notebook)
    for cell in whole["cells"]:
        if cell["id"] == "install":
            cell["metadata"]["tags"] = ["hide-input"]
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            cell["source"] = _BADGE.sub(r"[\1](\2)", text)
    return json.dumps(whole, indent=1)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("repository_url", "", "env", types=[str])
    app.add_config_value("repository_pages", {}, "env", types=[dict])
    app.connect("builder-inited", _copy_notebooks)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
