"""The figure of `train.experiments.stability`: a dot for each pair of rank maps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.experiments import stability
from train.experiments.figures import style
from train.experiments.results import Files


def draw(files: Files) -> Figure:
    """Draw the correlation of every pair of maps as a dot, their mean as a line."""
    maps = stability.maps(files.file("spectra").rows)
    found = stability.over_seeds(maps)
    found |= {"between\ntasks": stability.over_tasks(maps)} if len(maps) > 1 else {}
    figure, (axes,) = style.panels(1, 1, width=6.4, height=3.9)
    for place, agreement in enumerate(found.values()):
        _dots(axes, place - 0.17, agreement.pearson, style.BLUE, "Pearson", "o")
        _dots(axes, place + 0.17, agreement.spearman, style.ORANGE, "Spearman", "D")
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel("correlation of two rank maps")
    axes.set_ylim(top=1.02)
    style.legend(figure, axes, columns=2)
    return figure


def _dots(
    axes: Axes, x: float, values: Sequence[float], color: str, label: str, marker: str
) -> None:
    # Spread sideways, so that equal correlations stay visible.
    spread = np.linspace(-0.09, 0.09, len(values)) if len(values) > 1 else np.zeros(1)
    axes.scatter(
        x + spread, values, s=14, color=color, alpha=0.6, marker=marker, label=label
    )
    axes.hlines(np.mean(values), x - 0.13, x + 0.13, color=color, linewidth=2)
