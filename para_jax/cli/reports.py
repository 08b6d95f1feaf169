"""The files beside DST: a report, and a picture."""

import json
import pathlib
from typing import Literal

import para_jax as para


def check_file(path: pathlib.Path | None) -> None:
    """Raise an error before any work if a file could not be written after it."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise NotADirectoryError(
            f"'{path}': the folder '{path.parent}' does not exist."
        )
    if path.is_dir():
        raise FileExistsError(f"'{path}' is a folder, expected a file.")


def check_picture(path: pathlib.Path | None) -> None:
    """Raise an error before any work if a picture could not be drawn after it."""
    check_file(path)
    if path is None:
        return
    # An extra, and slow to import: only for a picture.
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise ValueError(f"'{path}' is not a picture: use .png, .pdf or .svg.")


def write(path: pathlib.Path | None, report: para.Report) -> None:
    """Write a report as JSON, unless the path is None."""
    if path is not None:
        path.write_text(json.dumps(report.as_dict(), indent=1) + "\n")


def draw(
    path: pathlib.Path | None,
    picture: Literal["rank_map", "spectrum"],
    report: para.Report,
) -> None:
    """Draw a picture of a report, unless the path is None."""
    if path is None:
        return
    from para_jax import plot

    getattr(plot, picture)(report).savefig(path, dpi=150)
