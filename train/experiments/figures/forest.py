"""Differences with their intervals, a line each: methods, and scores."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.experiments import measured
from train.experiments.figures import style
from train.experiments.names import label
from train.experiments.results import Files
from train.experiments.statistics import Interval
from train.experiments.tables.methods import TARGET, compared
from train.experiments.tables.scores import KINDS, budgets, interval, scores


def methods(files: Files) -> Figure:
    """Draw PARA minus each method at an average rank of 4, a panel a task."""
    para = files.measure("children", "para", TARGET)
    found = {name: measured.differences(para, x) for name, x in compared(files).items()}
    figure, axes = style.panels(
        1,
        len(para.columns),
        width=1.6 + 1.6 * len(para.columns),
        height=1.2 + 0.24 * len(found),
        sharey=True,
    )
    for each, column in zip(axes, para.columns, strict=True):
        _draw(each, {name: x[column] for name, x in found.items()})
        # Most methods are within two points of PARA, and some are far away.
        each.set_xscale("symlog", linthresh=2)
        each.margins(x=0.1)
        least, most = each.get_xlim()
        ticks = [x for x in (-20, -2, 0, 2, 20) if abs(x) == 2 or least <= x <= most]
        each.set_xticks(ticks, map(str, ticks))
        style.title(each, column)
    figure.supxlabel(
        "accuracy of PARA minus the method's, points, logarithmic beyond 2; "
        "95 % intervals",
        fontsize="small",
    )
    return figure


def by_score(files: Files) -> Figure:
    """Draw each score minus the singular value: a row of panels a kind of budget."""
    policies = {kind: budgets(files, kind) for kind in KINDS}
    names = list(dict.fromkeys(x for kind in KINDS for x in scores(files, kind)))
    columns = max(len(x) for x in policies.values())
    figure, axes = style.panels(
        len(KINDS),
        columns,
        width=1.6 + 1.6 * columns,
        height=1.0 + len(KINDS) * (0.5 + 0.22 * len(names)),
        sharey=True,
    )
    for row, kind in enumerate(KINDS):
        line = axes[row * columns : (row + 1) * columns]
        for each, policy in zip(line, policies[kind], strict=False):
            _draw(each, {label(x): interval(files, x, policy) for x in names})
            style.title(each, policy)
        for each in line[len(policies[kind]) :]:
            each.set_visible(False)
    figure.supxlabel(
        "accuracy minus that of pruning by σ, mean over tasks, points; 95 % intervals",
        fontsize="small",
    )
    return figure


def _draw(axes: Axes, found: Mapping[str, Interval | None]) -> None:
    """Draw the intervals from the top down; orange and blue ones leave zero out."""
    for place, x in enumerate(found.values()):
        if x is None:
            continue
        color = {1: style.ORANGE, -1: style.BLUE, 0: style.GREY}[x.side]
        half = 0 if x.seeds == 1 else 100 * x.half
        axes.errorbar(
            100 * x.mean, place, xerr=half, color=color, marker="o", markersize=3.5
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), list(found))
    # Inverted: the first method is on top.
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(3))
