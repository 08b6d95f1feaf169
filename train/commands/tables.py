"""The commands `python -m train table` and `python -m train figure`.

With `all`, those without rows in the results are left out. An error in one of them is
reported, and the others are made all the same.
"""

import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import rich.console

from train.experiments import documents
from train.experiments.figures import FIGURES
from train.experiments.figures.style import save
from train.experiments.missing import Missing
from train.experiments.results import FOLDER, Files
from train.experiments.tables import TABLES
from train.experiments.tables.table import markdown, terminal

T = TypeVar("T")

_UNBOUNDED = 10_000
"""Characters of a line: more than any table has."""


def table(name: str, /, *, write: bool = False, folder: pathlib.Path = FOLDER) -> None:
    """Print a table of the results.

    Args:
      name: One of a, b, ranks, epsilon, drop, scores, energy, stability, retuned, cost,
        rates; or all.
      write: Also put it in its place in docs/results.md and in the README.md of its
        results.
      folder: The folder of the JSON files of results.
    """
    made, lacking, reasons = _make(name, TABLES, Files(folder))
    console = rich.console.Console()
    blocks = [terminal(block) for tables in made.values() for block in tables]
    # A number cut short would say something else: better a line too long.
    options = console.options.update(width=_UNBOUNDED)
    widths = [console.measure(x, options=options).maximum for x in blocks]
    console.width = max([console.width, *widths])
    for block in blocks:
        console.print(block, "")
    if write:
        bodies = {
            documents.mark(key, folder): markdown(tables)
            for key, tables in made.items()
        }
        try:
            changed = documents.write(bodies)
        except ValueError as error:
            reasons.append(str(error))
        else:
            _say("Wrote", changed)
    _end(lacking, reasons)


def figure(
    name: str,
    /,
    *,
    folder: pathlib.Path = FOLDER,
    out: pathlib.Path | None = None,
) -> None:
    """Draw a figure of the results, as a PNG.

    Args:
      name: One of rank-maps, spectra, drop, energy, ranks, fisher, stability, methods,
        scores, retuned; or all.
      folder: The folder of the JSON files of results.
      out: The folder to draw into, by default `figures` in that of the results.
    """
    made, lacking, reasons = _make(name, FIGURES, Files(folder))
    out = out or folder / "figures"
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for key, picture in made.items():
        paths.append(out / f"{key}.png")
        save(picture, paths[-1])
    _say("Drew", paths)
    _end(lacking, reasons)


def _make(
    name: str, makers: Mapping[str, Callable[[Files], T]], files: Files
) -> tuple[dict[str, T], dict[str, Missing], list[str]]:
    """Make each block; return the blocks, the missing results, and the errors.

    Where nothing could be made, that the results lack it is an error too.
    """
    if name != "all" and name not in makers:
        sys.exit(f"'{name}' is unknown, expected one of {', '.join(makers)}; or all.")
    made, lacking, reasons = {}, {}, []
    for key in makers if name == "all" else [name]:
        # One failure must not hide the other tables.
        try:
            made[key] = makers[key](files)
        except Missing as error:
            lacking[key] = error
        except ValueError as error:
            reasons.append(f"{key}: {error}")
    # If nothing could be made, what is missing is the error.
    if not made:
        return {}, {}, [*reasons, *(f"{key}: {x}" for key, x in lacking.items())]
    return made, lacking, reasons


def _end(lacking: Mapping[str, Missing], reasons: Sequence[str]) -> None:
    """Print the omissions, and exit with an error if anything is wrong."""
    if lacking:
        print("Left out:", ", ".join(f"{k} ({x.what})" for k, x in lacking.items()))
    if reasons:
        sys.exit("\n".join(reasons))


def _say(what: str, paths: list[pathlib.Path]) -> None:
    # Relative paths can be pasted.
    for path in paths:
        print(what, os.path.relpath(path))
