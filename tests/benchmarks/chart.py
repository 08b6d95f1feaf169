"""Plot time against the adapter's size, with one line per way and the floor below."""

import pathlib
from collections.abc import Sequence
from typing import Any

from tests.benchmarks.rows import Row

OURS = ("auto", "gram", "qr", "host")


def save(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Save the picture, with one panel per dtype."""
    import matplotlib.figure

    dtypes = list(dict.fromkeys(x.dtype for x in rows))
    figure = matplotlib.figure.Figure(
        figsize=(2 + 4.6 * len(dtypes), 4.4), layout="constrained"
    )
    panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for panel, dtype in zip(panels, dtypes, strict=True):
        _draw(panel, [x for x in rows if x.dtype == dtype])
        panel.set_title(f"one child, {dtype}, {rows[0].device}", fontsize=9)
    panels[0].set_ylabel("time of one child")
    # The legend follows the vertical order of the lines, so they are easy to match.
    lines = {x.get_label(): x for panel in panels for x in panel.get_lines()}
    labels = sorted(lines, key=lambda x: -max(lines[x].get_ydata()))
    figure.legend(
        [lines[x] for x in labels],
        labels,
        loc="outside right center",
        frameon=False,
    )
    figure.savefig(path, dpi=150)


def _draw(panel: Any, rows: Sequence[Row]) -> None:
    for i, method in enumerate(dict.fromkeys(x.method for x in rows)):
        mine = [x for x in rows if x.method == method and x.ms is not None]
        mine = [x for x in mine if not x.is_first]
        mine.sort(key=lambda x: x.bytes)
        if mine:
            panel.plot(
                [x.bytes for x in mine],
                [x.ms / 1e3 for x in mine],
                marker="osD^v<>Ph"[i % 9],
                markersize=5,
                linewidth=2.2 if method in OURS else 1.2,
                color=f"C{i}",
                label=f"~ {method}" if any(x.scaled for x in mine) else method,
            )
    floor = sorted({(x.bytes, x.floor_ms / 1e3) for x in rows})
    panel.plot(*zip(*floor, strict=True), "k--", label="floor")
    panel.set(xscale="log", yscale="log", xlabel="adapter")
    panel.xaxis.set_major_formatter(lambda x, _: _quantity(x, _BYTES))
    panel.yaxis.set_major_formatter(lambda x, _: _quantity(x, _SECONDS))
    panel.grid(alpha=0.3)


_BYTES = {1e9: "GB", 1e6: "MB", 1e3: "kB", 1: "B"}
_SECONDS = {1: "s", 1e-3: "ms", 1e-6: "µs"}


def _quantity(x: float, units: dict[float, str]) -> str:
    """Format a power of ten in the largest unit that leaves a whole number."""
    size, unit = next(((s, u) for s, u in units.items() if x >= 0.999 * s), (1, ""))
    return f"{x / size:,.0f} {unit}"
