"""Accuracy by rank: one parent's children, DyLoRA, native LoRA (Figures 5 and 6)."""

from matplotlib.figure import Figure

from train.experiments import measured
from train.experiments.figures import style
from train.experiments.measured import value
from train.experiments.names import label
from train.experiments.results import Files
from train.experiments.tables.ranks import by_rank

_APART = 1.06
"""Distance between the bars of one rank, to stand side by side."""


def draw(files: Files) -> Figure:
    """Draw a panel for each task and one for their mean."""
    found = by_rank(files)
    columns = measured.columns(x for models in found.values() for x in models.values())
    rows = -(-len(columns) // 3)
    across = min(len(columns), 3)
    figure, axes = style.panels(
        rows, across, width=0.4 + 3.0 * across, height=0.9 + 2.5 * rows
    )
    ticks = sorted({value(policy) for models in found.values() for policy in models})
    for each, column in zip(axes, columns, strict=False):
        for number, (method, models) in enumerate(found.items()):
            style.line(
                each,
                # Shifted by a factor: the axis is logarithmic.
                [value(x) * _APART ** (number - (len(found) - 1) / 2) for x in models],
                [x.accuracy[column] for x in models.values()],
                color=style.METHODS[method],
                label=label(method),
                marker=style.MARKERS[number],
            )
        each.set_xscale("log", base=2)
        each.set_xticks(ticks, [f"{x:g}" for x in ticks])
        each.minorticks_off()
        style.title(each, column)
    for each in axes[len(columns) :]:
        each.set_visible(False)
    figure.supxlabel("average rank", fontsize="medium")
    figure.supylabel("accuracy, %", fontsize="medium")
    style.legend(figure, axes[0], columns=len(found))
    return figure
