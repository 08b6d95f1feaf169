"""PARA against Fisher-PARA, a score from gradients (the paper's Figure 7)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.experiments import measured, statistics
from train.experiments.figures import style
from train.experiments.measured import MEAN, Measured
from train.experiments.results import Files

SCORE = "fisher"


def draw(files: Files) -> Figure:
    """Draw accuracies around `y = x`: a panel a task, a marker a rank."""
    policies = measured.policies(files.rows("children"), SCORE, "rank")
    if not policies:
        files.measure("children", SCORE, "rank 4")  # Says what is missing.
    pairs = {
        policy: [files.measure("children", x, policy) for x in ("para", SCORE)]
        for policy in policies
    }
    tasks = [x for x in pairs[policies[0]][0].columns if x != MEAN]
    columns = min(len(tasks), 2)
    rows = -(-len(tasks) // columns)
    figure, axes = style.panels(
        rows, columns, width=0.6 + 3.1 * columns, height=1.0 + 2.9 * rows
    )
    for each, task in zip(axes, tasks, strict=False):
        _scatter(each, pairs, task)
        style.title(each, task)
    for each in axes[len(tasks) :]:
        each.set_visible(False)
    figure.supxlabel("PARA, accuracy, %", fontsize="medium")
    figure.supylabel("Fisher-PARA, accuracy, %", fontsize="medium")
    style.legend(figure, axes[0], columns=len(policies) + 1)
    return figure


def _scatter(axes: Axes, pairs: Mapping[str, Sequence[Measured]], task: str) -> None:
    """Draw means over seeds, their standard deviations, and the line `y = x`."""
    for number, (policy, (left, right)) in enumerate(pairs.items()):
        x, y = left.accuracy[task], right.accuracy[task]
        axes.errorbar(
            100 * statistics.mean(x),
            100 * statistics.mean(y),
            xerr=100 * np.nan_to_num(statistics.std(x)),
            yerr=100 * np.nan_to_num(statistics.std(y)),
            color=style.RANKS[number % len(style.RANKS)],
            marker=style.MARKERS[number % len(style.MARKERS)],
            linestyle="",
            markersize=5,
            elinewidth=0.8,
            label=policy,
        )
    # Equal limits on both axes, so that the diagonal is the line of equality.
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot(
        [low, high],
        [low, high],
        color=style.GREY,
        linewidth=0.8,
        zorder=0,
        label="y = x",
    )
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
