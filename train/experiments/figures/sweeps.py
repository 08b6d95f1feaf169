"""Pruning from the top (the paper's Figure 3) and by energy (its Figures 4 and 8)."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.experiments import measured
from train.experiments.figures import style
from train.experiments.measured import MEAN, Measured, value
from train.experiments.results import Files
from train.experiments.tables.sweeps import sweep


def drop(files: Files) -> Figure:
    """Draw the accuracy by the number of dropped largest components."""
    # From the least dropped to the most.
    found = dict(reversed(sweep(files, "drop-top", "drop").items()))
    parent = files.parent()
    if all(value(policy) for policy in found):
        found = {"drop 0": parent, **found}
    figure, (axes,) = style.panels(1, 1, width=6.4, height=3.9)
    _lines(axes, found)
    axes.set_xlabel("largest components dropped, of all modules together")
    axes.set_ylabel("accuracy, %")
    style.legend(figure, axes, columns=4)
    return figure


def energy(files: Files) -> Figure:
    """Draw the accuracy, and the average rank, by the kept energy.

    Bars are paired 95 % intervals of the difference to the parent.
    """
    found = dict(reversed(sweep(files, "para", "epsilon").items()))
    parent = files.parent()
    figure, (above, below) = style.panels(2, 1, width=6.4, height=6.2)
    _differences(above, found, parent)
    above.set_ylabel("accuracy minus the parent's, points")
    ranks = ranks_by_task(files, list(found))
    for task, marker in _markers(parent).items():
        below.plot(
            range(len(found)),
            [ranks[task][policy] for policy in found],
            color=style.TASKS[task],
            marker=marker,
            markersize=4,
            linewidth=1.4,
        )
    below.set_yscale("log", base=2)
    below.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
    below.set_xticks(range(len(found)), [f"{value(policy):g}" for policy in found])
    below.set_ylabel("average rank")
    below.set_xlabel("energy kept, ε")
    style.legend(figure, above, columns=4)
    return figure


def ranks_by_task(files: Files, policies: list[str]) -> dict[str, dict[str, float]]:
    """Return the average rank of PARA's children by task and policy, over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for x in files.rows("children"):
        if x.method == "para" and x.policy in policies:
            by_policy = found.setdefault(x.task, {})
            by_policy.setdefault(x.policy, []).append(x.average_rank)
    return {
        task: {policy: sum(x) / len(x) for policy, x in by_policy.items()}
        for task, by_policy in found.items()
    }


def _differences(axes: Axes, found: Mapping[str, Measured], parent: Measured) -> None:
    """Draw paired intervals for each task, side by side around every policy."""
    markers = _markers(parent)
    all_of = [measured.differences(x, parent) for x in found.values()]
    for number, (task, marker) in enumerate(markers.items()):
        # Side by side, so that intervals do not hide one another.
        shift = 0.1 * (number - (len(markers) - 1) / 2)
        axes.errorbar(
            [place + shift for place in range(len(found))],
            [100 * x[task].mean for x in all_of],
            yerr=[100 * x[task].half if x[task].seeds > 1 else 0 for x in all_of],
            color=style.TASKS[task],
            label=task,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            elinewidth=0.9,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(found)), [f"{value(policy):g}" for policy in found])


def _lines(axes: Axes, found: Mapping[str, Measured]) -> None:
    """Draw a line for each task, at evenly spaced values of the policy."""
    for task, marker in _markers(*found.values()).items():
        style.line(
            axes,
            range(len(found)),
            [x.accuracy[task] for x in found.values()],
            color=style.TASKS[task],
            label=task,
            marker=marker,
        )
    axes.set_xticks(range(len(found)), [f"{value(policy):g}" for policy in found])


def _markers(*found: Measured) -> dict[str, str]:
    """Return a marker for each task, the same in every panel."""
    tasks = [x for x in measured.columns(found) if x != MEAN]
    return dict(zip(tasks, style.MARKERS, strict=False))
