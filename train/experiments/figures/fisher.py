"""PARA against Fisher-PARA, which needs gradients (the paper's Figure 7)."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from train.experiments import measured, statistics
from train.experiments.figures import style
from train.experiments.measured import MEAN
from train.experiments.results import Files

SCORE = "fisher"


def draw(files: Files) -> Figure:
    """Returns a scatter of accuracies: a task has a colour, a rank a marker."""
    policies = measured.policies(files.rows("children"), SCORE, "rank")
    if not policies:
        files.measure("children", SCORE, "rank 4")  # Says what is missing.
    pairs = {
        policy: [files.measure("children", x, policy) for x in ("para", SCORE)]
        for policy in policies
    }
    tasks = [x for x in pairs[policies[0]][0].columns if x != MEAN]
    figure, (axes,) = style.panels(1, 1, width=6.4, height=4.8)
    for policy, marker in zip(policies, style.MARKERS, strict=False):
        left, right = pairs[policy]
        for task in tasks:
            x, y = left.accuracy[task], right.accuracy[task]
            axes.errorbar(
                100 * statistics.mean(x),
                100 * statistics.mean(y),
                xerr=100 * statistics.std(x),
                yerr=100 * statistics.std(y),
                color=style.TASKS[task],
                marker=marker,
                markersize=5,
                elinewidth=0.8,
                alpha=0.85,
            )
    _diagonal(axes)
    axes.set_xlabel("PARA, accuracy, %")
    axes.set_ylabel("Fisher-PARA, accuracy, %")
    _legend(figure, tasks, policies)
    return figure


def _diagonal(axes: Axes) -> None:
    """Draws `y = x`, both axes alike."""
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color=style.GREY, linewidth=0.8, zorder=0)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def _legend(figure: Figure, tasks: list[str], policies: list[str]) -> None:
    colors = [
        Line2D([], [], color=style.TASKS[x], marker="o", linestyle="", label=x)
        for x in tasks
    ]
    marks = [
        Line2D([], [], color=style.GREY, marker=mark, linestyle="", label=policy)
        for mark, policy in zip(style.MARKERS, policies, strict=False)
    ]
    line = Line2D([], [], color=style.GREY, linewidth=0.8, label="y = x")
    figure.legend(
        handles=[*colors, *marks, line],
        loc="outside right center",
        frameon=False,
        fontsize="small",
    )
