"""Time one child against the speed of the memory and against other implementations.

    python -m tests.benchmarks.decompose
    python -m tests.benchmarks.decompose --cases siglip2,gemma3-4b --dtype bfloat16
    python -m tests.benchmarks.decompose --json rows.json --plot rows.svg
    python -m tests.benchmarks.decompose --from rows.json --markdown

The timed part starts with an adapter on the device and ends with its child on the
device: all singular values, the threshold that keeps a quarter of them, and the kept
factors.

- `auto`, `gram`, `qr`: this library in one compiled program, in float64, the child
  padded to its largest rank.
- `host`: `para_jax.compress`, from NumPy to NumPy, in its exact ranks; on CPU.
- `paper`: QR of both factors and SVD of the core in JAX, mapped over the modules, in
  float32, as PARA writes it.
- `torch-loop`, `torch-batch`: the same in PyTorch, a module or a stack at a time.
- `torch-full`: PyTorch's SVD of one whole update. `peft`: PEFT's `convert_to_lora`,
  which does the same. Both are scaled up to all modules by `m n min(m, n)`.

The floor is the time to read all factors twice and to write the kept part once, at the
bandwidth of a large copy in this run. `ms` is the median of warm calls, each over
inputs that are no longer in the cache (see `clock.copies`), and excludes the time that
Python takes to start a program while another one runs (see `clock.median`).

`first ms` is trace, compile and first run, with JAX's caches cleared; set
JAX_COMPILATION_CACHE_DIR and run twice to see a warm persistent cache. XLA keeps its
autotuning results from earlier rows, so `gram` after `auto` is not as cold as alone.
For PyTorch it is the first run with the library already started. `peak MB` includes
inputs and child: for JAX the compiler's plan, for PyTorch on a GPU the allocator's
peak. The errors are measured on a few modules, against NumPy in float64: `sigma` is the
largest relative error of a kept singular value, `product` the largest relative error of
a kept product, in the Frobenius norm.
"""

import argparse
import math
import os
import pathlib
from collections.abc import Sequence

# Set before JAX is imported: PyTorch needs room on the same device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from tests.benchmarks import cases, chart, measure, place, rows
from tests.benchmarks.rows import Row

TINY = "tiny"
DTYPES = ("float32", "bfloat16", "float16")


def _chosen(what: str, given: str, known: Sequence[str]) -> list[str]:
    names = given.split(",")
    if unknown := [x for x in names if x not in known]:
        raise SystemExit(f"Unknown {what} '{unknown[0]}'. Known: {', '.join(known)}.")
    return names


def _default_cases() -> list[str]:
    """Return all cases; on a CPU, where a row takes minutes, those below 1 GB."""
    most = 1e9 if jax.default_backend() == "cpu" else math.inf
    sizes = {name: 4 * x.parameters for name, x in cases.CASES.items() if name != TINY}
    return [name for name, size in sizes.items() if size < most]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", help="all that suit the device, but for tiny")
    parser.add_argument("--methods", default=",".join(measure.METHODS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--limit", type=float, default=20, help="seconds a row")
    parser.add_argument("--json", type=pathlib.Path, help="where to put the rows")
    parser.add_argument("--plot", type=pathlib.Path, help="where to put the picture")
    parser.add_argument("--from", dest="source", type=pathlib.Path, help="saved rows")
    parser.add_argument("--markdown", action="store_true", help="for a page")
    return parser


def _run(given: argparse.Namespace) -> list[Row]:
    names = given.cases or ",".join(_default_cases())
    chosen = [cases.CASES[x] for x in _chosen("case", names, list(cases.CASES))]
    methods = _chosen("method", given.methods, measure.METHODS)
    dtypes = _chosen("dtype", given.dtype, DTYPES)
    shared, result = place.where(), []
    for dtype in dtypes:
        for case in chosen:
            for row in measure.measured(
                case, methods, dtype, limit=given.limit, place=shared
            ):
                result.append(row)
                print(rows.line(row), flush=True)
                if given.json:  # After every row: a long run may be interrupted.
                    rows.save(given.json, result)
    return result


def _saved(given: argparse.Namespace) -> list[Row]:
    """Read the rows of a file, for the requested cases and dtypes."""
    names = (given.cases or ",".join(cases.CASES)).split(",")
    dtypes = given.dtype.split(",")
    found = rows.load(given.source)
    return [x for x in found if x.case in names and x.dtype in dtypes]


def main(words: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(words)
    found = _saved(given) if given.source else _run(given)
    print(rows.markdown(found) if given.markdown else rows.text(found))
    if given.plot:
        chart.save(given.plot, found)


if __name__ == "__main__":
    main()
