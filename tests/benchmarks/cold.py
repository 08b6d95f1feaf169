"""A process from file to file, beside what no process can avoid; and families.

    python -m tests.benchmarks.cold

The first table: `para compress --gamma 0.25` of an adapter in PEFT's format, with no
compiled program to find, against `import jax` and a process that reads and writes the
same bytes and nothing else. All are processes of their own, one after the other, again
and again; their medians are shown, in seconds.

The second: one child of an adapter in memory, and sixteen at once.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

import para_jax
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
    """Returns a random adapter whose modules differ in how fast their spectra fall."""
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


def seconds(*words: str) -> float:
    """Returns how long a Python process takes from its start to its end."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    # What is installed comes with its byte code, a checkout has to be let write it.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *words], env=environment, check=True, capture_output=True
    )
    return time.perf_counter() - start


def cold(case: str, folder: pathlib.Path, repeats: int) -> list[float]:
    """Returns the medians of importing, copying and compressing, and the ratio."""
    parent, child = folder / "parent", folder / "child"
    para_jax.save(adapters(case), parent, overwrite=True)
    weights = [str(x / WEIGHTS) for x in (parent, child)]
    words = ("compress", str(parent), str(child), "--gamma=0.25", "--overwrite")
    rows = {
        "compress": ("-m", "para_jax.cli", *words),
        "import": ("-c", "import jax"),
        "copy": ("-c", COPY, *weights, str(folder / "copy")),
        "start": ("-c", ""),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(1 + repeats):
        for name, words in rows.items():
            times[name].append(seconds(*words))
    # The first ones find no byte code, and nothing in the file system's cache.
    median = {name: statistics.median(x[1:]) for name, x in times.items()}
    # Both processes of the sum start an interpreter, and the one of `para` does once.
    copy = median["copy"] - median["start"]
    whole = median["import"] + copy
    return [median["import"], copy, whole, median["compress"]]


def families(case: str, repeats: int) -> list[float]:
    """Returns the seconds that one child takes, and that sixteen take."""
    parent = adapters(case)
    calls = {
        "one": lambda: para_jax.compress(parent, SIXTEEN[-1]),
        "sixteen": lambda: para_jax.family(parent, SIXTEEN),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return [statistics.median(x) for x in times.values()]


def show(title: str, columns: list[str], rows: list[tuple[str, list[float]]]) -> None:
    print(title)
    print(f"  {'':20}" + "".join(f"{x:>14}" for x in columns))
    for name, values in rows:
        cells = "".join(f"{x:14.3f}" for x in values)
        print(f"  {name:20}{cells}{values[-1] / values[-2]:14.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    rows = []
    for case in given.cases:
        with tempfile.TemporaryDirectory() as folder:
            rows.append((case, cold(case, pathlib.Path(folder), given.repeats)))
    columns = ["import jax", "read + write", "sum", "para compress", "ratio"]
    show("A process from file to file, seconds", columns, rows)
    rows = [(case, families(case, given.repeats)) for case in given.cases]
    show("Children in memory, seconds", ["one", "sixteen", "ratio"], rows)


if __name__ == "__main__":
    main()
