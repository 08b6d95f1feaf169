"""Rank maps: a module's type by its depth, by task (the paper's Figure 1)."""

import re
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.experiments import stability
from train.experiments.figures import style
from train.experiments.results import Files

_PLACE = re.compile(r"(?:.*?/)?(\d+)/(.+)")


def draw(files: Files) -> Figure:
    """Draw the mean rank over seeds of every module, one panel a task."""
    maps = stability.maps(files.file("spectra").rows)
    means = {task: _mean(list(seeds.values())) for task, seeds in maps.items()}
    highest = max(max(x.values()) for x in means.values())
    columns = min(len(means), 2)
    rows = -(-len(means) // columns)
    figure, axes = style.panels(
        rows, columns, width=1.2 + 3.3 * columns, height=0.9 + 2.3 * rows, sharey=True
    )
    for each, (task, ranks) in zip(axes, means.items(), strict=False):
        _cells(each, ranks, highest)
        style.title(each, f"{task}, {len(maps[task])} seeds")
    for each in axes[len(means) :]:
        each.set_visible(False)
    figure.supxlabel("layer", fontsize="medium")
    figure.suptitle(f"Kept ranks, {stability.RANK} on average of 16", fontsize="medium")
    bar = figure.colorbar(axes[0].images[0], ax=axes, label="rank", pad=0.02)
    bar.outline.set_visible(False)
    return figure


def place(path: str) -> tuple[int, str]:
    """Return a module's depth, and its abbreviated type.

    Raises:
      ValueError: if the path has no layer number.
    """
    match = _PLACE.fullmatch(path)
    if match is None:
        raise ValueError(
            f"spectra.json: module '{path}' has no layer number, expected one such as "
            "'encoder/layer/0/attention/self/query'."
        )
    kind = match[2].replace("self/", "").removesuffix("/dense")
    return int(match[1]), kind


def _mean(seeds: list[Mapping[str, int]]) -> dict[tuple[int, str], float]:
    return {place(x): float(np.mean([seed[x] for seed in seeds])) for x in seeds[0]}


def _cells(axes: Axes, ranks: Mapping[tuple[int, str], float], highest: float) -> None:
    kinds = sorted({kind for _, kind in ranks}, key=_order)
    depths = sorted({depth for depth, _ in ranks})
    grid = np.array([[ranks.get((d, k), np.nan) for d in depths] for k in kinds])
    axes.imshow(grid, cmap=style.HEAT, vmin=0, vmax=highest, aspect="auto")
    for (row, column), rank in np.ndenumerate(grid):
        # The colour map is dark at low values.
        color = "black" if rank > 0.45 * highest else "white"
        axes.text(
            column,
            row,
            "" if np.isnan(rank) else f"{rank:.1f}",
            color=color,
            ha="center",
            va="center",
            fontsize="small",
        )
    axes.set_xticks(range(len(depths)), [str(x) for x in depths])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _order(kind: str) -> tuple[int, str]:
    """Sort the types by the data flow through a block of BERT."""
    flow = ("query", "key", "value", "attention/output", "intermediate", "output")
    places = [i for i, name in enumerate(flow) if kind.endswith(name)]
    # Types of other models come last.
    return (places[0] if places else len(flow)), kind
