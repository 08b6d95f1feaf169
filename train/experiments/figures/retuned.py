"""Squeeze and re-tune: accuracy by the share of the parent's steps, at each budget."""

from matplotlib.figure import Figure

from train.experiments.figures import style
from train.experiments.measured import MEAN
from train.experiments.results import Files
from train.experiments.tables.retuned import budgets


def draw(files: Files) -> Figure:
    """Draw a panel for each average rank, with native LoRA and the parent."""
    found, parent = budgets(files), files.parent()
    figure, axes = style.panels(
        1, len(found), width=0.8 + 2.9 * len(found), height=3.6, sharey=True
    )
    for each, (policy, budget) in zip(axes, found.items(), strict=True):
        style.level(
            each, parent.accuracy[MEAN], color=style.GREY, label="parent, rank 16"
        )
        style.level(
            each,
            budget.native.accuracy[MEAN],
            color=style.BLUE,
            label="LoRA trained at this rank, all steps",
        )
        style.line(
            each,
            [100 * share for share in budget.retuned],
            [x.accuracy[MEAN] for x in budget.retuned.values()],
            color=style.ORANGE,
            label="PARA's child, trained on",
        )
        each.set_xticks([100 * share for share in budget.retuned])
        style.title(each, f"average {policy}")
    axes[0].set_ylabel("accuracy, mean over tasks, %")
    figure.supxlabel("steps after the cut, % of the parent's", fontsize="medium")
    style.legend(figure, axes[0], columns=3)
    return figure
