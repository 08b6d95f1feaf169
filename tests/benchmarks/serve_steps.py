"""Batches of a frozen model with its tenants' adapters: programs, and their times.

One program at a time: it is compiled and then timed beside the model without adapters,
the two in turn, so that a load that comes and goes meets both. What a way's `plan` does
on the host, while the batch before runs, is not in the time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.benchmarks import banks, clock, serving
from tests.benchmarks.serve_rows import Step
from tests.benchmarks.serving import Fleet

BASE, ALONE = "base", "one by one"
DENSE_GROUPS = 64  # Without a kernel for it, ragged_dot multiplies with every group.


class Contender(NamedTuple):
    adapters: str
    way: str


class Batch(NamedTuple):
    """Rows, and the distinct tenants that they are of."""

    rows: int
    present: int


class Run(NamedTuple):
    """A program, and the arguments of each of its calls."""

    program: Callable[..., jax.Array]
    calls: Sequence[tuple[Any, ...]]

    def __call__(self) -> list[jax.Array]:
        return [self.program(*x) for x in self.calls]


def contenders(batch: Batch) -> Iterator[Contender]:
    """Yields what is run for a batch, the most telling first."""
    yield Contender("none", BASE)
    yield Contender("parent", "padded")
    yield Contender("child", "padded")
    yield Contender("child", "paged")
    yield Contender("child", ALONE)
    yield Contender("child", "segments")
    if batch.present <= DENSE_GROUPS:
        yield Contender("child", "ragged_dot")


def made(fleet: Fleet, batch: Batch, contender: Contender) -> Run:
    """Returns the run of one batch, not compiled yet, its arguments on the device."""
    adapters, name = contender
    if name == ALONE:
        return _one_by_one(fleet, batch)
    inputs = jax.device_put(fleet.backbone.inputs(batch.rows))
    if name == BASE:
        return Run(fleet.base, [(fleet.params, inputs)])
    way, tenants = banks.WAYS[name], mixed(fleet, batch.rows, batch.present)
    bank, ranks = fleet.bank(adapters, way.bank), fleet.adapted(adapters)
    plans = {path: way.plan(x, tenants) for path, x in ranks.items()}
    call = (fleet.params, bank, jax.device_put(plans), inputs)
    return Run(fleet.programs[name], [call])


def _one_by_one(fleet: Fleet, batch: Batch) -> Run:
    """Returns a run that calls the model for each tenant's part of the batch."""
    rows, present = batch
    bank = fleet.bank("child", banks.padded)
    inputs = jax.device_put(fleet.backbone.inputs(rows // present))
    tenants = [jax.device_put(np.int32(x)) for x in mixed(fleet, present, present)]
    return Run(fleet.alone, [(fleet.params, bank, x, inputs) for x in tenants])


def mixed(fleet: Fleet, rows: int, present: int) -> np.ndarray:
    """Returns the tenants of a batch's rows, so many of them distinct, in turn."""
    generator = np.random.default_rng(present)
    return np.resize(generator.choice(fleet.tenants, present, replace=False), rows)


def compiled(run: Run) -> float:
    """Returns the seconds of a first call, which are those of compiling it."""
    return clock.first(lambda _: run(), jax.block_until_ready)


def step(
    fleet: Fleet, batch: Batch, contender: Contender, run: Run, *, limit: float
) -> Step:
    """Returns the time of a run that is compiled, beside that of its base.

    Args:
      fleet: The model and its tenants.
      batch: Made into `run`.
      contender: Made into `run`.
      run: Made by `made`, and called once.
      limit: About the seconds to spend.
    """
    base, backbone = Contender("none", BASE), fleet.backbone
    calls = {base: made(fleet, batch, base), contender: run}
    times = clock.interleaved(calls, limit=limit)
    seconds = times[contender]
    ms, ratio = (
        np.quantile(x, [0.25, 0.5, 0.75])
        for x in (np.multiply(1e3, seconds), np.divide(times[base], seconds))
    )
    return Step(
        model=backbone.name,
        dtype=backbone.dtype,
        modules=len(backbone.timed),
        tenants=fleet.tenants,
        rows=batch.rows,
        tokens=serving.tokens(fleet),
        present=batch.present,
        adapters=contender.adapters,
        way=contender.way,
        ms=ms[1],
        low_ms=ms[0],
        high_ms=ms[2],
        throughput=ratio[1],
        low=ratio[0],
        high=ratio[2],
    )
