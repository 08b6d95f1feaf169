"""Measure the gain from ragged ranks in serving many tenants' adapters.

    python -m tests.benchmarks.serve --json rows.json
    python -m tests.benchmarks.serve --small
    python -m tests.benchmarks.serve --from rows.json --markdown --plot serve.png

There is one frozen model, and one adapter per tenant: the parent of rank 16, or its
child at a quarter of the ranks. Each row of a batch belongs to one tenant. `backbones`
defines the models and tenants, `banks` the ways to apply all adapters in one program,
`swap` the loading of an adapter into a bank. `one by one` is the child without a bank:
one run per tenant in the batch, on that tenant's rows. `base` has no adapters; its time
is also that of a model with one merged adapter.

Times are medians of warm batches, each way in turn with `base` (see `serve_steps`), in
the shown dtype and JAX's default precision. Before a way is timed, it is compared with
plain products in NumPy. Programs are compiled one at a time, each named on stderr, and
the file of `--json` is written after every row.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

# Set before JAX is imported: shows the memory that a bank uses, not a reserved pool.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from tests.benchmarks import (
    backbones,
    banks,
    place,
    serve_chart,
    serve_rows,
    serve_steps,
    serve_tables,
    serving,
    swap,
)
from tests.benchmarks.backbones import Backbone
from tests.benchmarks.serve_rows import Result, Row
from tests.benchmarks.serve_steps import Batch
from tests.benchmarks.serving import Fleet

Say = Callable[[str], None]


class Plan(NamedTuple):
    """The plan of a run: the tenants in a bank, and batches, most informative first."""

    tenants: int
    models: Mapping[str, Callable[[], Backbone]]
    batches: Sequence[tuple[str, Batch]]


def _plan(*, small: bool) -> Plan:
    on_cpu = jax.default_backend() == "cpu"
    layers, dtype = (1, "float32") if on_cpu else (2, "bfloat16")
    models = {
        "llama": lambda: backbones.llama(layers, dtype),
        "minilm": backbones.minilm,
    }
    if small:
        return Plan(8, models, [("minilm", Batch(4, x)) for x in (4, 1)])
    rows, present = (16, (16, 4, 1)) if on_cpu else (64, (16, 64, 4, 1))
    batches = [(name, Batch(rows, x)) for x in present for name in models]
    if on_cpu:
        return Plan(32, models, batches)
    return Plan(256, models, [*batches, ("llama", Batch(256, 256))])


def _measured(plan: Plan, limit: float, say: Say) -> Iterator[Row]:
    """Yield every row as soon as it is measured."""
    fleets: dict[str, Fleet] = {}
    for name, batch in plan.batches:
        if name not in fleets:
            say(f"{name}: memory and swaps")
            fleets[name] = Fleet(plan.models[name](), plan.tenants)
            yield from serving.memory(fleets[name])
            yield from swap.swaps(fleets[name])
            yield from _misses(fleets[name], say)
        yield from _steps(fleets[name], batch, limit, say)


def _misses(fleet: Fleet, say: Say) -> Iterator[Row]:
    name = fleet.backbone.name
    for adapters, way in [("parent", "padded"), *(("child", x) for x in banks.WAYS)]:
        say(f"{name}: {adapters}, {way} against NumPy")
        yield serving.miss(fleet, adapters, way)


def _steps(fleet: Fleet, batch: Batch, limit: float, say: Say) -> Iterator[Row]:
    at = f"{fleet.backbone.name}, {batch.rows} rows of {batch.present}"
    for contender in serve_steps.contenders(batch):
        say(f"{at}: compiling {', '.join(contender)}")
        run = serve_steps.made(fleet, batch, contender)
        say(f"{at}: compiled in {serve_steps.compiled(run):.1f} s")
        yield serve_steps.step(fleet, batch, contender, run, limit=limit)


def _run(given: argparse.Namespace) -> Result:
    begin = time.monotonic()

    def say(words: str) -> None:
        print(
            f"{time.monotonic() - begin:6.1f} s  {words}", file=sys.stderr, flush=True
        )

    result = Result(place=place.where())
    for row in _measured(_plan(small=given.small), given.limit, say):
        result.add(row)
        print(serve_rows.line(row), flush=True)
        if given.json:
            serve_rows.save(given.json, result)
        if time.monotonic() - begin > given.limit_total:
            say("out of time: what is left of the plan is not run")
            break
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a look, on CPU")
    parser.add_argument("--limit", type=float, default=2, help="seconds a row")
    parser.add_argument(
        "--limit-total", type=float, default=1e9, help="seconds; then no row is begun"
    )
    parser.add_argument("--json", type=pathlib.Path, help="where to put the rows")
    parser.add_argument("--plot", type=pathlib.Path, help="where to put the picture")
    parser.add_argument("--from", dest="source", type=pathlib.Path, help="saved rows")
    parser.add_argument("--markdown", action="store_true", help="for a page")
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
