"""Plot a report: the kept rank of every module, and the spectrum behind the choice.

The functions return a `matplotlib.figure.Figure` and touch no global state: save it
with `figure.savefig("ranks.png")`, or show it as the last value of a notebook's cell.
matplotlib (`pip install 'para-jax[plot]'`) is imported when a function is called. Runs
on the host.
"""

import re
import typing
from collections.abc import Mapping, Sequence

import numpy as np

from para_jax._pruning.report import Report

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

_COLORS = "cividis"  # Even in lightness, and the same for colour-blind readers.
_BAR, _LINE = "#7b93b8", "#b5401f"
_BINS = 60
_LABEL_HEIGHT = 0.19  # Of a threshold's label, in inches.
_ANY = "*"  # In a module's type, in the place of the depth.
_DEPTH = re.compile(r"(?:.*_)?(\d+)")  # `3` and `layers_3`, but not `fc1`.


def rank_map(report: Report) -> "Figure":
    """Plot the kept rank of every module, its type by its depth.

    The first number in a path is the depth: `layer/3/query` and `layers_3/query` are
    both `query` in column 3. Modules without a number share one more column. A cell is
    empty if the module had no adapter, and 0 if none of its components was kept.

    Example:
      >>> from para_jax import plot
      >>> child = para_jax.compress(adapters, para_jax.Gamma(0.5))
      >>> plot.rank_map(child.report).savefig("ranks.png")

    Args:
      report: The report of one child.

    Raises:
      ValueError: if the report holds no modules.
    """
    if not report.modules:
        raise ValueError("Nothing to draw: the report holds no modules.")
    places = [_place(module.path) for module in report.modules]
    rows = list(dict.fromkeys(kind for kind, _ in places))
    # Modules without a number come after the numbered layers.
    columns = sorted({d for _, d in places}, key=lambda d: (d is None, d or 0))
    kept = np.full((len(rows), len(columns)), np.nan)
    for (kind, depth), module in zip(places, report.modules, strict=True):
        kept[rows.index(kind), columns.index(depth)] = module.kept

    figure, axes = _figure(2.6 + 0.42 * len(columns), 1.2 + 0.36 * len(rows))
    _draw_cells(axes, kept)
    axes.set_xticks(
        range(len(columns)), ["–" if d is None else str(d) for d in columns]
    )
    axes.set_yticks(range(len(rows)), _short_names(rows))
    axes.set_xlabel("no layer number" if columns == [None] else "layer")
    axes.set_title(
        f"Kept ranks, {report.policy}\n"
        f"on average {report.average_rank:.2f}, at most {report.max_rank}",
        fontsize="medium",
    )
    return figure


def spectrum(report: Report, thresholds: Mapping[str, float] | None = None) -> "Figure":
    """Plot the histogram of all scores of the model, on a log axis.

    With the paper's score they are the singular values.

    Example:
      >>> from para_jax import plot
      >>> child = para_jax.compress(adapters, para_jax.Gamma(0.5))
      >>> plot.spectrum(child.report, {"tau": 3.0}).savefig("spectrum.png")

    Args:
      report: The report of any child: each holds the whole spectrum of the parent.
      thresholds: Lines to draw, by label. By default the report's own. One beyond the
        spectrum is drawn at its edge.

    Raises:
      ValueError: if no singular value is above zero.
    """
    if thresholds is None:
        thresholds = {report.policy: report.threshold}
    scores = [m.weight * np.ravel(m.sigma) for m in report.modules]
    pooled = np.concatenate(scores or [[]])
    positive = pooled[pooled > 0]
    if not positive.size:
        raise ValueError(
            f"Nothing to draw: none of the {pooled.size} singular values in "
            f"{len(report.modules)} modules is above zero."
        )
    low, high = positive.min() / 1.2, positive.max() * 1.2

    height = 3.0 + _LABEL_HEIGHT * len(thresholds)
    figure, axes = _figure(7.0, height)
    axes.set_xscale("log")
    # Bins of equal ratio have equal widths on the log axis.
    edges = np.geomspace(low, high, _BINS + 1).tolist()
    counts, _, _ = axes.hist(positive, bins=edges, color=_BAR)
    axes.set_xlim(low, high)
    # 1.2: the axes are lower than the figure, by title and labels.
    symbol = "σ" if report.score == "sigma" else "score"
    labels = {f"{k}: {symbol} ≥ {t:.3g}": t for k, t in thresholds.items()}
    free = _draw_thresholds(axes, labels, step=1.2 * _LABEL_HEIGHT / height)
    axes.set_ylim(0, 1.05 * np.max(counts) / free)
    axes.yaxis.set_major_locator(_whole_numbers())
    zeros = pooled.size - positive.size
    what = "singular value" if report.score == "sigma" else f"{report.score} score"
    axes.set_xlabel(what + (f" ({zeros} zeros left out)" if zeros else ""))
    axes.set_ylabel("number of components")
    axes.set_title(
        f"The pooled {what}s of {len(report.modules)} modules",
        fontsize="medium",
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    # Not `pyplot`, which keeps every figure in global state until it is closed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _whole_numbers() -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, steps=[1, 2, 5, 10])


def _place(path: str) -> tuple[tuple[str, ...], int | None]:
    """Return the module's type, such as `("layers_*", "query")`, and its depth."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if match := _DEPTH.fullmatch(part):
            stem = part[: match.start(1)]
            kind = (*parts[:index], f"{stem}{_ANY}", *parts[index + 1 :])
            return kind, int(match[1])
    return tuple(parts), None


def _short_names(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the shortest end of each row's path not shared with another row."""
    names = []
    for row in rows:
        size = 1
        while size < len(row) and sum(r[-size:] == row[-size:] for r in rows) > 1:
            size += 1
        parts = [part for part in row[-size:] if part != _ANY]
        names.append("/".join(parts or row))
    return names


def _draw_cells(axes: "Axes", kept: np.ndarray) -> None:
    highest = max(np.nanmax(kept), 1.0)
    image = axes.imshow(kept, cmap=_COLORS, vmin=0, vmax=highest, aspect="auto")
    for (row, column), rank in np.ndenumerate(kept):
        if not np.isnan(rank):
            # The map runs from dark to light, about equally readable at this share.
            color = "black" if rank > 0.48 * highest else "white"
            axes.text(
                column,
                row,
                f"{rank:.0f}",
                color=color,
                ha="center",
                va="center",
                fontsize="small",
            )
    axes.set_xticks(np.arange(kept.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(kept.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(
        image, ax=axes, label="rank", pad=0.02, ticks=_whole_numbers()
    )
    bar.outline.set_visible(False)


def _draw_thresholds(
    axes: "Axes", thresholds: Mapping[str, float], *, step: float
) -> float:
    """Draw labelled lines, and return the share of the height left for the histogram.

    The labels form a staircase over the histogram: each stands at the top of its line,
    and the lines below it end lower. So labels and lines cannot overlap.
    """
    low, high = axes.get_xlim()
    marks = sorted(
        (float(np.clip(t, low, high)), label) for label, t in thresholds.items()
    )
    # The roots first: on a log axis the center is sqrt(low * high), which can overflow.
    center = np.sqrt(low) * np.sqrt(high)
    on_left = sum(x > center for x, _ in marks) > len(marks) / 2
    if not on_left:
        marks.reverse()
    free = 1.0 - step * len(marks)
    for number, (x, label) in enumerate(marks, 1):
        top = free + step * number
        across = axes.get_xaxis_transform()
        axes.plot([x, x], [0, top], transform=across, color=_LINE, linewidth=1)
        axes.annotate(
            label,
            (x, top),
            (-4 if on_left else 4, 0),
            xycoords=across,
            textcoords="offset points",
            color=_LINE,
            fontsize="small",
            va="top",
            ha="right" if on_left else "left",
        )
    return free
