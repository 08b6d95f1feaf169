"""The style of the figures: colours, panels, and lines with spread over seeds."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.data import digits, sentiment, sources
from train.experiments import statistics
from train.experiments.rows import SETS
from train.experiments.statistics import Sample

DPI = 110

# Okabe and Ito's, which colour-blind readers can tell apart.
ORANGE, YELLOW, GREEN = "#d55e00", "#e69f00", "#009e73"
BLUE, PINK, SKY = "#0072b2", "#cc79a7", "#56b4e9"
GREY = "#666666"
HEAT = "cividis"

_FAMILIES = (
    sentiment.TASKS,
    digits.TASKS,
    tuple(x.name for x in sources.IMAGES),
    (*(x.name for x in sources.GLUE), "rte"),
    ("problems",),
    tuple(SETS),
    *SETS.values(),
)
_OF_TASKS = (BLUE, YELLOW, GREEN, PINK, ORANGE, SKY, "black", GREY)
TASKS = {
    task: colour
    for tasks in _FAMILIES
    for task, colour in zip(tasks, _OF_TASKS, strict=False)
}
"""A colour for each task, unique within its comparison."""

METHODS = {"para": ORANGE, "lora": BLUE, "dylora": GREEN, "matryoshka": PINK}
"""A colour for each method with a line of its own."""

RANKS = (BLUE, GREEN, YELLOW, ORANGE, PINK)
"""Colours for budgets, from the largest down."""

MARKERS = "osD^vPXh"


def panels(
    rows: int, columns: int, *, width: float, height: float, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `width` by `height` inches, and its axes row by row."""
    # A Figure without pyplot: no window system, and no state to close.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    axes = list(grid.ravel())
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize="small")
        each.grid(alpha=0.25, linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def title(axes: Axes, text: str) -> None:
    """Write a panel's title."""
    axes.set_title(text, fontsize="medium")


def line(
    axes: Axes,
    x: Sequence[float],
    samples: Sequence[Sample],
    *,
    color: str,
    label: str,
    marker: str = "o",
) -> None:
    """Draw mean accuracies in percent, and their standard deviation as bars."""
    axes.errorbar(
        x,
        [100 * statistics.mean(sample) for sample in samples],
        # One seed has no spread: NaN would hide the point as well.
        yerr=[100 * np.nan_to_num(statistics.std(sample)) for sample in samples],
        color=color,
        label=label,
        marker=marker,
        markersize=4,
        linewidth=1.4,
        capsize=2,
        elinewidth=0.9,
    )


def level(axes: Axes, sample: Sample, *, color: str, label: str) -> None:
    """Draw one accuracy as a dashed line, its standard deviation as a band."""
    middle = 100 * statistics.mean(sample)
    spread = 100 * np.nan_to_num(statistics.std(sample))
    axes.axhline(middle, color=color, linestyle="--", linewidth=1.1, label=label)
    axes.axhspan(middle - spread, middle + spread, color=color, alpha=0.1, linewidth=0)


def legend(figure: Figure, axes: Axes, *, columns: int) -> None:
    """Draw one legend for all panels, above them.

    Below them, it would lie over a label of the figure's x axis.
    """
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))  # Of equal labels one is enough.
    figure.legend(
        list(named.values()),
        list(named),
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize="small",
    )


def save(figure: Figure, path: pathlib.Path) -> None:
    """Write the figure as a PNG without the name and version of the drawing library."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
