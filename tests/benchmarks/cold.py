"""Time a cold process from file to file against its lower bound, and families.

    python -m tests.benchmarks.cold --json tests/benchmarks/results/cold-cpu.json
    python -m tests.benchmarks.cold --from rows.json --markdown

The first table compares `para compress --gamma 0.25` on an adapter in PEFT's format,
without a compilation cache, with `import jax` plus a process that only reads and writes
the same bytes. Each is a process of its own; they are run in turn, repeatedly, and the
table shows their medians in seconds.

The second table compares one child of an adapter in memory with sixteen at once.

Other load on the machine affects all of them, so the load at the start is saved too.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

import para_jax
from tests.benchmarks import cold_rows, place
from tests.benchmarks.cold_rows import Row
from tests.benchmarks.scale import ALPHA_BY_RANK

# Layers, rank, and `(m, n)` of the modules of a layer.
CASES: dict[str, tuple[int, int, dict[str, tuple[int, int]]]] = {
    "SigLIP2-base r=16": (
        12,
        16,
        {
            **{f"attn.{x}": (768, 768) for x in ("q", "k", "v", "out")},
            "mlp.fc1": (768, 3072),
            "mlp.fc2": (3072, 768),
        },
    ),
    "Gemma3-4B r=16": (
        34,
        16,
        {
            "attn.q": (2560, 2048),
            "attn.k": (2560, 1024),
            "attn.v": (2560, 1024),
            "attn.o": (2048, 2560),
            "mlp.gate": (2560, 10240),
            "mlp.up": (2560, 10240),
            "mlp.down": (10240, 2560),
        },
    ),
}
WEIGHTS = "adapter_model.safetensors"
COPY = """
import pathlib, sys
source, child, target = map(pathlib.Path, sys.argv[1:])
everything = source.read_bytes()
target.write_bytes(everything[: child.stat().st_size])
"""
SIXTEEN = [para_jax.Gamma(i / 16) for i in range(1, 17)]


def adapters(case: str) -> dict[str, para_jax.Adapter]:
    """Return a random adapter with modules of different spectral decay."""
    layers, rank, modules = CASES[case]
    rng = np.random.default_rng(0)
    result = {}
    for layer in range(layers):
        for name, (m, n) in modules.items():
            fall = np.exp(-np.arange(rank) * rng.uniform(0.01, 0.2), dtype=np.float32)
            result[f"model/layers/{layer}/{name.replace('.', '/')}"] = para_jax.Adapter(
                a=rng.standard_normal((m, rank), np.float32),
                b=rng.standard_normal((rank, n), np.float32) * fall[:, None] / m,
                scale=ALPHA_BY_RANK,
            )
    return result


def run(*words: str) -> None:
    """Run a Python process from its start to its end."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    # Installed packages ship byte code; a checkout must be allowed to write its own.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(
        [sys.executable, *words], env=environment, check=True, capture_output=True
    )


def cold(case: str, repeats: int) -> dict[str, float]:
    """Return the medians of processes that import, copy and compress."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        parent, child = folder / "parent", folder / "child"
        para_jax.save(adapters(case), parent)
        weights = [str(x / WEIGHTS) for x in (parent, child)]
        words = ("compress", str(parent), str(child), "--gamma=0.25", "--overwrite")
        median = medians(
            {
                "compress": lambda: run("-m", "para_jax.cli", *words),
                "start": lambda: run("-c", "import jax"),
                "copy": lambda: run("-c", COPY, *weights, str(folder / "copy")),
                "nothing": lambda: run("-c", ""),
            },
            repeats,
        )
    # Both processes of the sum start an interpreter, but `para` starts only one.
    median["copy"] -= median.pop("nothing")
    return median


def families(case: str, repeats: int) -> dict[str, float]:
    """Return the seconds for one child and for sixteen."""
    parent = adapters(case)
    calls: dict[str, Callable[[], object]] = {
        "one": lambda: para_jax.compress(parent, SIXTEEN[-1]),
        "sixteen": lambda: para_jax.family(parent, SIXTEEN),
    }
    return medians(calls, repeats)


def medians(
    calls: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Return the median seconds of each call, with all calls in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    # The first round is dropped: it finds neither byte code nor warm caches.
    return {name: statistics.median(x[1:]) for name, x in times.items()}


def measured(cases: Sequence[str], repeats: int) -> list[Row]:
    """Measure each case and return its row."""
    shared = {"load": os.getloadavg()[0], **place.where()}
    return [
        Row(case=case, **cold(case, repeats), **families(case, repeats), **shared)
        for case in cases
    ]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", type=pathlib.Path, help="where to put the rows")
    parser.add_argument("--from", dest="source", type=pathlib.Path, help="saved rows")
    parser.add_argument("--markdown", action="store_true", help="for a page")
    given = parser.parse_args(words)
    if given.source:
        rows = [x for x in cold_rows.load(given.source) if x.case in given.cases]
    else:
        rows = measured(given.cases, given.repeats)
    if given.json:
        cold_rows.save(given.json, rows)
    print(cold_rows.markdown(rows) if given.markdown else cold_rows.text(rows))


if __name__ == "__main__":
    main()
