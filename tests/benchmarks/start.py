"""Time whole processes of `para`, from their start to their end, against `import jax`.

    python -m tests.benchmarks.start
    python -m tests.benchmarks.start --repeats 15 --json rows.json

Help and mistakes do no work; `para compress --gamma 0.25` reads an adapter in PEFT's
format and writes one, without a compilation cache. The processes are run in turn,
repeatedly. The table shows the medians of their seconds, of the seconds of all their
threads on a core, and the ratios to a process that imports JAX alone. Other load on the
machine changes the first ratio more than the second.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import para_jax
from tests.benchmarks import cold

IMPORT = "import jax"
SHORT = {
    "para --help": ("--help",),
    "para compress --help": ("compress", "--help"),
    "an unknown command": ("comprss",),
    "an unknown flag": ("compress", "adapter", "small", "--gama", "0.25"),
    "no budget": ("compress", "adapter", "small"),
}


class Times(NamedTuple):
    """Seconds of one process by the clock, and on all cores together."""

    wall: float
    core: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The medians of one process, in seconds, and their ratios to `import jax`."""

    name: str
    wall: float
    core: float
    wall_ratio: float
    core_ratio: float


def measured(cases: Sequence[str], repeats: int) -> list[Row]:
    """Run all processes in turn and return a row for each, `import jax` first."""
    with tempfile.TemporaryDirectory() as folder:
        processes = {
            IMPORT: ("-c", IMPORT),
            **{x: ("-m", "para_jax.cli", *words) for x, words in SHORT.items()},
            **{f"para compress, {x}": _compress(x, folder) for x in cases},
        }
        # The first round is dropped: it finds neither byte code nor files in memory.
        rounds = [
            {x: run(words) for x, words in processes.items()}
            for _ in range(1 + repeats)
        ][1:]
    median = {
        name: Times(
            statistics.median(x[name].wall for x in rounds),
            statistics.median(x[name].core for x in rounds),
        )
        for name in processes
    }
    return rows(median)


def _compress(case: str, folder: str) -> tuple[str, ...]:
    """Write the parent of a case; return the words that compress it."""
    parent = pathlib.Path(folder, case.replace(" ", "-"))
    para_jax.save(cold.adapters(case), parent)
    words = ("compress", str(parent), f"{parent}-child", "--gamma=0.25", "--overwrite")
    return ("-m", "para_jax.cli", *words)


def run(words: Sequence[str]) -> Times:
    """Run Python to its end, with success or with a user's mistake."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    # Installed packages ship byte code; a checkout must be allowed to write its own.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    silent = subprocess.DEVNULL
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=silent, stderr=silent
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 2):
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}.")
    return Times(wall, usage.ru_utime + usage.ru_stime)


def rows(median: Mapping[str, Times]) -> list[Row]:
    """Compare every process with `import jax`."""
    base = median[IMPORT]
    return [
        Row(
            name=name,
            wall=x.wall,
            core=x.core,
            wall_ratio=x.wall / base.wall,
            core_ratio=x.core / base.core,
        )
        for name, x in median.items()
    ]


def text(found: Sequence[Row]) -> str:
    """Format the rows for a terminal."""
    lines = [f"{'process':34}{'seconds':>10}{'ratio':>8}{'on cores':>10}{'ratio':>8}"]
    lines += [
        f"{x.name:34}{x.wall:10.3f}{x.wall_ratio:8.2f}{x.core:10.3f}{x.core_ratio:8.2f}"
        for x in found
    ]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cases", nargs="*", choices=cold.CASES, default=cold.CASES)
    parser.add_argument("--json", type=pathlib.Path, help="where to put the rows")
    given = parser.parse_args(words)
    load = os.getloadavg()[0]
    found = measured(list(given.cases), given.repeats)
    if given.json:
        saved = [dataclasses.asdict(x) for x in found]
        given.json.write_text(json.dumps(saved, indent=1) + "\n")
    print(text(found))
    print(f"The load at the start was {load:.1f}.")


if __name__ == "__main__":
    main()
