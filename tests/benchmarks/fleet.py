"""Measure time against the number of adapters, in memory and on disk, and their size.

    python -m tests.benchmarks.fleet
    python -m tests.benchmarks.fleet --counts 1 10 100 1000 --plot fleet.png
    python -m tests.benchmarks.fleet --counts --layers 1 9 80 --hidden 8192 --ffn 28672
    python -m tests.benchmarks.fleet --counts 1000 --layers --before OLD --shape minilm

In memory, the same child of every tenant's adapter (decompose, a quarter of all ranks,
masked) is made by one program over a tenant axis, and by a loop over a program for one
adapter. Both are compiled before timing. On disk, `para fleet` is timed with and
without its process start, which does not depend on the number of adapters, and
`para compress` as one process per adapter, on a few of them, scaled up and marked `~`.
Beside it, reading and writing alone, in a process a core: no arithmetic could be so
fast that a fleet on disk is faster. With `--before`, the fleet of another version runs
in turns with this one's, from the folder that holds its `para_jax`; each is first run
on four adapters, so that neither compiles while it is timed. The last rows are `para
fleet` on one adapter of a given number of layers; the third command ends with one of
Llama-3-70B's shapes, rank 64, in float32.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

import para_jax as para
from tests.benchmarks import scale

SMALL = scale.Model(layers=2, hidden=256, kv=128, ffn=512, rank=8)
MINILM = scale.Model(layers=6, hidden=384, kv=384, ffn=1536, rank=16)
SHAPES = {"small": SMALL, "minilm": MINILM}
LOOPED = 4  # The number of processes that are started one by one.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: series, number of adapters, total bytes, seconds."""

    series: str
    adapters: int
    bytes: int
    seconds: float
    scaled: bool = False


def child(parents: dict[str, para.Adapter]) -> dict[str, para.Adapter]:
    spectra = para.decompose(parents)
    kept = para.masks(spectra, para.Gamma(0.25))
    return para.repack(spectra, kept, parents, form="masked")


def stacked(model: scale.Model, count: int) -> dict[str, para.Adapter]:
    """Draw random adapters, tenants first: `[count, layers, m, r]`."""
    rng = np.random.default_rng(0)
    stack = (count, model.layers)
    return {
        path: para.Adapter(
            a=rng.standard_normal((*stack, m, model.rank), np.float32),
            b=rng.standard_normal((*stack, model.rank, n), np.float32),
        )
        for path, (m, n) in model.projections.items()
    }


def in_memory(model: scale.Model, count: int) -> list[Row]:
    tenants = jax.device_put(stacked(model, count))
    each = [jax.tree.map(lambda x, i=i: x[i], tenants) for i in range(count)]
    one, together = jax.jit(child), jax.jit(jax.vmap(child))
    ways = {
        "in memory, one by one": lambda: [one(x) for x in each],
        "in memory, one program": lambda: together(tenants),
    }
    size = count * model.bytes
    return [
        Row(series=name, adapters=count, bytes=size, seconds=median(way))
        for name, way in ways.items()
    ]


def median(way) -> float:
    jax.block_until_ready(way())
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(way())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def on_disk(
    folder: pathlib.Path, model: scale.Model, count: int, given: argparse.Namespace
) -> list[Row]:
    parents = folder / f"parents-{count}"
    parents.mkdir()
    for i in range(count):
        scale.make(parents / f"{i:05}", model)
    size = count * model.bytes
    row = functools.partial(Row, adapters=count, bytes=size)
    rows = []
    for name, root in versions(given.before).items():
        first = folder / f"first-{count}-{name}"
        fleet(parents, first, row, given.jobs, name, root, match="0000[0-3]")
    for turn in range(1 + bool(given.before)):
        for name, root in versions(given.before).items():
            target = folder / f"fleet-{count}-{turn}-{name}"
            rows += fleet(parents, target, row, given.jobs, name, root)
            shutil.rmtree(target)
    seconds = files_alone(parents, folder / f"copies-{count}")
    rows.append(row(series="reading and writing alone", seconds=seconds))
    times = []
    for i in range(min(count, LOOPED)):
        words = (str(parents / f"{i:05}"), str(folder / f"one-{count}-{i}"))
        command = ("-m", "para_jax.cli", "compress", *words, "--gamma=0.25")
        times.append(scale.run("para compress", *command).seconds)
    seconds = statistics.mean(times) * count
    one_by_one = "para compress, one by one"
    rows.append(row(series=one_by_one, seconds=seconds, scaled=count > LOOPED))
    shutil.rmtree(parents)
    return rows


def versions(before: pathlib.Path | None) -> dict[str, pathlib.Path]:
    """Return the folders that hold the packages to time."""
    this = {"para fleet": pathlib.Path(para.__file__).parents[1]}
    return {"para fleet before": before.absolute()} | this if before else this


def fleet(
    parents: pathlib.Path,
    target: pathlib.Path,
    row: Callable[..., Row],
    jobs: int | None,
    series: str,
    root: pathlib.Path,
    match: str = "*",
) -> list[Row]:
    """Time the whole process, and read the seconds that it reports itself."""
    words = ["fleet", str(parents / match), str(target), "--gamma=0.25", "--json"]
    words += [f"--jobs={jobs}"] if jobs else []
    start = time.perf_counter()
    command = [sys.executable, "-m", "para_jax.cli", *words]
    # `-m` looks into the working directory first, whatever PYTHONPATH says.
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=root).stdout
    whole = time.perf_counter() - start
    return [
        row(series=f"{series}, process", seconds=whole),
        row(series=series, seconds=json.loads(out)["seconds"]),
    ]


def files_alone(parents: pathlib.Path, target: pathlib.Path) -> float:
    """Return the seconds to read and write all adapters, without an SVD."""
    pairs = [(x, target / x.name) for x in sorted(parents.iterdir())]
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(cores, mp_context=context) as pool:
        list(pool.map(copy, pairs[:cores]))  # Imports are not timed.
        start = time.perf_counter()
        list(pool.map(copy, pairs[cores:] or pairs))
    share = len(pairs[cores:] or pairs) / len(pairs)
    return (time.perf_counter() - start) / share


def copy(pair: tuple[pathlib.Path, pathlib.Path]) -> None:
    source, target = pair
    para.save(para.load(source), target, overwrite=True)


def by_size(
    folder: pathlib.Path, model: scale.Model, before: pathlib.Path | None
) -> list[Row]:
    parents = folder / f"size-{model.layers}"
    parents.mkdir()
    scale.make(parents / "one", model)
    row = functools.partial(Row, adapters=1, bytes=model.bytes)
    rows = []
    for name, root in versions(before).items():
        target = folder / f"child-{model.layers}-{name}"
        series = name.replace("para fleet", "one adapter")
        rows += fleet(parents, target, row, None, series, root)
    return rows


def show(rows: list[Row]) -> None:
    import rich.box
    import rich.console
    import rich.table

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    columns = ("", "adapters", "MB", "seconds", "adapters/s", "MB/s")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    last = rows[0].series
    for row in sorted(rows, key=lambda x: x.series):
        if row.series != last:
            table.add_section()
        last = row.series
        table.add_row(
            row.series,
            f"{row.adapters:,}",
            f"{row.bytes / 1e6:,.1f}",
            f"{'~' * row.scaled}{row.seconds:,.3g}",
            f"{row.adapters / row.seconds:,.1f}",
            f"{row.bytes / row.seconds / 1e6:,.1f}",
        )
    rich.console.Console(width=80).print(table)


def draw(rows: list[Row], path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    by_bytes = [x for x in rows if x.series.startswith("one adapter")]
    by_count = [x for x in rows if x not in by_bytes]
    panels = [
        ("adapters", by_count, lambda x: x.adapters),
        ("MB of one adapter", by_bytes, lambda x: x.bytes / 1e6),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(5.5 * len(panels), 4.6), layout="constrained")
    for axes, (label, shown, x) in zip(
        np.ravel(figure.subplots(1, len(panels))), panels, strict=True
    ):
        for name in dict.fromkeys(row.series for row in shown):
            line = sorted((x(y), y.seconds) for y in shown if y.series == name)
            axes.plot(*zip(*line, strict=True), marker="o", label=name)
        ends = [line[-1][0] / 1000, line[-1][0]]
        top = max(y.seconds for y in shown)
        axes.plot(ends, [top / 1000, top], "k:", label="linear")
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds")
        axes.set_xlim(min(map(x, shown)) / 1.5, max(map(x, shown)) * 1.5)
        axes.set_ylim(min(y.seconds for y in shown) / 2, top * 2)
        ticks = sorted({x(y) for y in shown})
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--counts", type=int, nargs="*", default=[1, 10, 100])
    add("--layers", type=int, nargs="*", default=[1, 2, 4, 8])
    add("--hidden", type=int, default=4096)
    add("--kv", type=int, default=1024)
    add("--ffn", type=int, default=14336)
    add("--rank", type=int, default=64)
    add("--jobs", type=int)
    add("--shape", choices=SHAPES, default="small")
    add("--before", type=pathlib.Path, help="a folder that holds another para_jax")
    add("--folder", help="where to put the adapters, for a while")
    add("--plot", type=pathlib.Path, metavar="FILE.png")
    add("--json", action="store_true")
    given = parser.parse_args()
    model = SHAPES[given.shape]
    rows = [row for count in given.counts for row in in_memory(model, count)]
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = pathlib.Path(name)
        for count in given.counts:
            rows += on_disk(folder, model, count, given)
        for layers in given.layers:
            sizes = {x: getattr(given, x) for x in ("hidden", "kv", "ffn", "rank")}
            one = scale.Model(layers=layers, **sizes)
            rows += by_size(folder, one, given.before)
    if given.plot:
        draw(rows, given.plot)
    if given.json:
        print(json.dumps([dataclasses.asdict(x) for x in rows], indent=1))
    else:
        device = jax.devices()[0].device_kind
        print(f"jax {jax.__version__} on {device}, {model.bytes / 1e3:.0f} kB each")
        show(rows)


if __name__ == "__main__":
    main()
