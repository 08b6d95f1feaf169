"""The singular values of the parents, by task (the paper's Figures 2 and 9)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.experiments.figures import style
from train.experiments.results import Files
from train.experiments.rows import TASKS, Spectrum

SHARES = (0.25, 0.0625)
"""Shares of the components; lines mark PARA's thresholds for them."""

_BINS = 50


def draw(files: Files) -> Figure:
    """Draw a histogram on a log axis for each task: mean and spread over seeds."""
    rows: Sequence[Spectrum] = files.file("spectra").rows
    found = {x.task for x in rows}
    tasks = [task for task in TASKS if task in found]
    pooled = {task: _pooled(rows, task) for task in tasks}
    # Zeros have no place on a logarithmic axis.
    positive = np.concatenate([x[x > 0] for seeds in pooled.values() for x in seeds])
    if not positive.size:
        raise ValueError("spectra.json: no singular value is above zero.")
    # One set of bins, so that panels can be compared.
    edges = np.geomspace(positive.min() / 1.1, positive.max() * 1.1, _BINS + 1)
    columns = min(len(tasks), 2)
    lines = -(-len(tasks) // columns)
    figure, axes = style.panels(
        lines, columns, width=0.6 + 3.6 * columns, height=0.7 + 2.3 * lines, sharey=True
    )
    for each, task in zip(axes, tasks, strict=False):
        _histogram(each, pooled[task], edges, style.TASKS[task])
        style.title(each, f"{task}, {len(pooled[task])} seeds")
    for each in axes[len(tasks) :]:
        each.set_visible(False)
    figure.supxlabel(
        "singular value; lines: the least and the most of all seeds", fontsize="medium"
    )
    figure.supylabel("components, mean over seeds", fontsize="medium")
    return figure


def _pooled(rows: Sequence[Spectrum], task: str) -> list[np.ndarray]:
    """Pool the singular values of each seed's parent."""
    seeds = sorted({x.seed for x in rows if x.task == task})
    return [
        np.concatenate([x.values for x in rows if x.task == task and x.seed == seed])
        for seed in seeds
    ]


def _histogram(
    axes: Axes, seeds: Sequence[np.ndarray], edges: np.ndarray, color: str
) -> None:
    counts = np.array([np.histogram(x, edges)[0] for x in seeds])
    axes.stairs(counts.mean(0), edges, fill=True, color=color, alpha=0.5)
    for end in (counts.min(0), counts.max(0)):
        axes.stairs(end, edges, color=color, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.45 * counts.max())
    for share, top in zip(SHARES, (0.88, 0.99), strict=True):
        cut = np.mean(
            [np.sort(x)[::-1][max(int(share * x.size), 1) - 1] for x in seeds]
        )
        axes.axvline(cut, ymax=top, color=style.GREY, linewidth=1)
        axes.annotate(
            f"γ = {share:g}",
            (cut, top),
            (-4, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize="small",
        )
