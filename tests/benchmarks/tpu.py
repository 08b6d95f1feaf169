"""Compare compilations for TPUs that are not there: `python -m tests.benchmarks.tpu`.

Needs libtpu (`pip install para-jax[tpu]`), and no TPU. Nothing runs: times are those of
the compiler, in seconds of all its threads. With `--old FOLDER`, a folder that another
build's `para_jax` lies in, that build is compiled too, up to the limit.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "compiled_for_tpu.py"
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
HEADER = "topology   place  form     seconds      old  temporary  moved  largest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="gemma3-4b")
    parser.add_argument("--layers", default="34")
    parser.add_argument("--limit", type=float, default=600, help="seconds each")
    parser.add_argument("--old", help="a folder with another build's para_jax")
    options = parser.parse_args()
    print(
        f"{options.case}, {options.layers} layers; temporary: bytes over the adapter's"
    )
    print(HEADER)
    for topology in TOPOLOGIES:
        for place, form in (
            ("chip", "stacked"),
            ("chip", "named"),
            ("mesh", "stacked"),
        ):
            args = [topology, options.case, form, options.layers, place]
            new = compiled(str(ROOT), args, options.limit)
            old = compiled(options.old, args, options.limit) if options.old else None
            print(f"{topology:10} {place:6} {form:8} {_row(new, old, options.limit)}")


def compiled(build: str, args: list[str], limit: float) -> dict[str, Any] | None:
    """Return what the compiler says, or None if it takes longer than `limit`.

    Raises:
      RuntimeError: if it fails.
    """
    path = os.pathsep.join([build, str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, str(SCRIPT), *args]
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _row(new: Any, old: Any, limit: float) -> str:
    before = f"{old['seconds']:.0f}" if old else "-"
    if new is None:
        return f"> {limit:5.0f}  {before:>7}"
    sizes = f"{new['temporary']:9.2f}  {new['moved']:5}  {new['largest']:7}"
    return f"{new['seconds']:7.0f}  {before:>7}  {sizes}"


if __name__ == "__main__":
    main()
