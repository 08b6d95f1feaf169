"""Reads the library's docstrings as they are written: plain text, with formulas.

An indented block after a line that ends with a colon is a formula or code, and is shown
as it stands. reStructuredText would take it for a quotation, and "the `R`s" for an open
quote.
"""

import re

from sphinx.application import Sphinx
from sphinx.ext import autosummary

_FIELD = re.compile(r"\s*:\w[^:]*:|\s*\.\. ")
_DOCTEST = re.compile(r"\s*>>> ")
_GLUED = re.compile(r"((?<![`\w])`[^`]+`)(?=\w)")


def literal(lines: list[str]) -> list[str]:
    """Return the lines, with `::` before each indented block that is no list."""
    out: list[str] = []
    for i, line in enumerate(lines):
        out.append(line)
        if not line.rstrip().endswith(":") or line.rstrip().endswith("::"):
            continue
        if _FIELD.match(line) or i + 2 >= len(lines) or lines[i + 1].strip():
            continue
        following = lines[i + 2]
        depth = len(line) - len(line.lstrip())
        inner = len(following) - len(following.lstrip())
        if inner >= depth + 4 and not _DOCTEST.match(following):
            out[-1] = line.rstrip() + ":"
    return out


def _process(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    lines: list[str],
) -> None:
    lines[:] = [_GLUED.sub(r"\1\\ ", x) for x in literal(lines)]


def setup(app: Sphinx) -> dict[str, bool]:
    # Or a summary ends at "the paper's Eq."
    autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.", "Eqs.")
    # After napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", _process, priority=600)
    return {"parallel_read_safe": True}
