"""Plot serving: throughput against tenants in a batch, and memory capacity."""

import pathlib
from collections.abc import Sequence
from typing import Any

from tests.benchmarks import banks, serve_steps
from tests.benchmarks.serve_rows import Memory, Result, Step

GIGABYTES = 10


def save(path: pathlib.Path, result: Result) -> None:
    """Save the picture, with one panel per model and one for memory."""
    import matplotlib.figure

    models = list(dict.fromkeys(x.model for x in result.steps))
    figure = matplotlib.figure.Figure(figsize=(11, 4.4), layout="constrained")
    *panels, last = figure.subplots(1, len(models) + 1, squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        mine = [x for x in result.steps if x.model == model]
        sizes = [x.rows for x in mine]
        rows = max(sizes, key=sizes.count)
        _lines(panel, [x for x in mine if x.rows == rows])
        panel.set(title=f"{model}, {rows} rows", xlabel="tenants in the batch")
    _bars(last, result.memory)
    lines = {x.get_label(): x for panel in panels for x in panel.get_lines()}
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=6, frameon=False
    )
    figure.suptitle(result.place["device"], fontsize=10)
    figure.savefig(path, dpi=150)


def _lines(panel: Any, steps: Sequence[Step]) -> None:
    """Draw every way's throughput, in percent of the model without adapters."""
    ticks = sorted({x.present for x in steps})
    ways = dict.fromkeys((x.adapters, x.way) for x in steps if x.way != "base")
    for adapters, way in ways:
        mine = [x for x in steps if (x.adapters, x.way) == (adapters, way)]
        mine.sort(key=lambda x: x.present)
        panel.plot(
            [x.present for x in mine],
            [100 * x.throughput for x in mine],
            color=f"C{_ORDER.index(way)}",
            linestyle="--" if adapters == "parent" else "-",
            marker="osD^v<>"[_ORDER.index(way)],
            markersize=5,
            label=f"{adapters}, {way}",
        )
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, map(str, ticks))
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.set_ylabel("throughput, % of base")
    panel.grid(alpha=0.3)


_ORDER = (*banks.WAYS, serve_steps.ALONE)


def _bars(panel: Any, memory: Sequence[Memory]) -> None:
    """Draw the number of tenants' adapters that fit into the memory of one parent."""
    parents = {x.model: x.bytes for x in memory if x.layout == "parent"}
    labels = [f"{x.model}: {x.layout}" for x in memory][::-1]
    counts = [parents[x.model] / x.bytes for x in memory][::-1]
    bars = panel.barh(labels, counts, color="C0")
    fit = [f" {int(GIGABYTES * 1e9 // x.bytes):,}" for x in memory][::-1]
    panel.bar_label(bars, fit, fontsize=8)
    panel.set(
        title=f"adapters in {GIGABYTES} GB",
        xlabel="adapters in the place of one parent",
        xlim=(0, 1.2 * max(counts)),
    )
    panel.tick_params(axis="y", labelsize=8)
