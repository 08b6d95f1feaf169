"""A picture: time against the adapter's size, every way a line, the floor below."""

import pathlib
from collections.abc import Sequence

from tests.benchmarks.rows import Row


def save(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes the picture; one panel a dtype."""
    import matplotlib.figure

    dtypes = list(dict.fromkeys(x.dtype for x in rows))
    figure = matplotlib.figure.Figure(
        figsize=(2.2 + 4.6 * len(dtypes), 4.4), layout="constrained"
    )
    panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for panel, dtype in zip(panels, dtypes, strict=True):
        _draw(panel, [x for x in rows if x.dtype == dtype])
        panel.set_title(dtype)
    panels[0].set_ylabel("time of one child, ms")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.suptitle(rows[0].device)
    figure.savefig(path, dpi=150)


def _draw(panel, rows: Sequence[Row]) -> None:
    methods = list(dict.fromkeys(x.method for x in rows))
    for i, method in enumerate(methods):
        mine = [x for x in rows if x.method == method and x.ms is not None]
        mine.sort(key=lambda x: x.bytes)
        if mine:
            about = " (scaled up)" if all(x.scaled for x in mine) else ""
            panel.plot(
                [x.bytes / 1e6 for x in mine],
                [x.ms for x in mine],
                marker="osD^v<>Ph"[i % 9],
                color=f"C{i}",
                label=method + about,
            )
    floor = sorted({(x.bytes / 1e6, x.floor_ms) for x in rows})
    panel.plot(*zip(*floor, strict=True), "k--", label="floor")
    panel.set(xscale="log", yscale="log", xlabel="adapter, MB")
    panel.grid(alpha=0.3, which="major")
