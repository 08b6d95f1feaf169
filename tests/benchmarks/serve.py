"""What ragged ranks are worth to a server of many tenants' adapters.

    python -m tests.benchmarks.serve --json rows.json
    python -m tests.benchmarks.serve --small
    python -m tests.benchmarks.serve --from rows.json --markdown --plot docs/serve.png

A frozen model, and one adapter a tenant: the parent of rank 16, or its child at a
quarter of the ranks. Each row of a batch is of one tenant. `backbones` tells of the
models and of how the tenants are made, `banks` of the ways to apply them all in one
program, `swap` of how an adapter gets into a bank. `one by one` is the child without
any of this: a run for each tenant in the batch, on that tenant's rows. `base` has no
adapters, which is also the time of a model with one adapter merged into it.

Times are medians of warm batches, all ways in turn (see `clock.interleaved`), in the
dtype shown and JAX's default precision. Before anything is timed, each way is compared
with plain products in NumPy.
"""

import argparse
import os
import pathlib
import time
from collections.abc import Sequence

# Before JAX is imported: what a bank takes should be seen, not what is set aside.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from tests.benchmarks import (
    backbones,
    place,
    serve_chart,
    serve_rows,
    serve_tables,
    serving,
    swap,
)
from tests.benchmarks.backbones import Backbone
from tests.benchmarks.serve_rows import Result

Batches = Sequence[tuple[int, int]]
"""The rows of each batch, and the tenants in it."""


def _plan(*, small: bool) -> tuple[int, list[tuple[Backbone, Batches]]]:
    """Returns the tenants in the banks, and what runs in each model."""
    on_cpu = jax.default_backend() == "cpu"
    if small:
        return 8, [(backbones.minilm(), [(4, 1), (4, 4)])]
    if on_cpu:
        batches = [(16, 1), (16, 4), (16, 16)]
        llama = backbones.llama(1, "float32")
        return 32, [(llama, [*batches, (4, 4)]), (backbones.minilm(), batches)]
    batches = [(64, x) for x in (1, 4, 16, 64)]
    llama = backbones.llama(2, "bfloat16")
    strangers = [(16, 16), (256, 256)]
    return 256, [(llama, [*batches, *strangers]), (backbones.minilm(), batches)]


def _run(given: argparse.Namespace) -> Result:
    begin, result = time.monotonic(), Result(place=place.where())
    tenants, plan = _plan(small=given.small)
    for backbone, batches in plan:
        fleet = serving.Fleet(backbone, tenants)
        misses = serving.errors(fleet, 5, 3)
        result.errors |= {f"{backbone.name}, {k}": x for k, x in misses.items()}
        result.memory += serving.memory(fleet)
        result.swaps += swap.swaps(fleet)
        print(f"{backbone.name}: checked, swapped, {time.monotonic() - begin:.0f} s")
        for step in serving.steps(fleet, batches, limit=given.limit):
            result.steps.append(step)
            print(serve_rows.line(step), flush=True)
            if given.json:  # After every row: a long run may be cut short.
                serve_rows.save(given.json, result)
    print(f"{time.monotonic() - begin:.0f} s in all")
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a look, on CPU")
    parser.add_argument("--limit", type=float, default=1, help="seconds a batch")
    parser.add_argument("--json", type=pathlib.Path, help="where to put the rows")
    parser.add_argument("--plot", type=pathlib.Path, help="where to put the picture")
    parser.add_argument("--from", dest="source", type=pathlib.Path, help="saved rows")
    parser.add_argument("--markdown", action="store_true", help="for a README")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(words)
    result = serve_rows.load(given.source) if given.source else _run(given)
    print(
        serve_tables.markdown(result) if given.markdown else serve_tables.text(result)
    )
    if given.plot:
        serve_chart.save(given.plot, result)


if __name__ == "__main__":
    main()
