"""Compile and time batches of a frozen model with its tenants' adapters.

Each program is compiled and then timed in turn with the model without adapters, so that
a varying load on the machine affects both alike. The host work of a way's `plan`, which
overlaps with the batch before, is not included in the time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.benchmarks import banks, clock, serving
from tests.benchmarks.serve_rows import Step
from tests.benchmarks.serving import Fleet

BASE, ALONE = "base", "one by one"
DENSE_GROUPS = 64  # `ragged_dot` without a special kernel multiplies with every group.


class Contender(NamedTuple):
    adapters: str
    way: str


class Batch(NamedTuple):
    """The number of rows, and of distinct tenants among them."""

    rows: int
    present: int


class Run(NamedTuple):
    """A program, and the arguments of each of its calls."""

    program: Callable[..., jax.Array]
    calls: Sequence[tuple[Any, ...]]

    def __call__(self) -> list[jax.Array]:
        return [self.program(*x) for x in self.calls]


def contenders(batch: Batch) -> Iterator[Contender]:
    """Yield the contenders for a batch, most informative first."""
    yield Contender("none", BASE)
    yield Contender("parent", "padded")
    yield Contender("child", "padded")
    yield Contender("child", "paged")
    yield Contender("child", ALONE)
    yield Contender("child", "segments")
    if batch.present <= DENSE_GROUPS:
        yield Contender("child", "ragged_dot")


def made(fleet: Fleet, batch: Batch, contender: Contender) -> Run:
    """Prepare the run of one batch: arguments on the device, nothing compiled yet."""
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
    """Prepare a run that calls the model once per tenant in the batch."""
    rows, present = batch
    bank = fleet.bank("child", banks.padded)
    inputs = jax.device_put(fleet.backbone.inputs(rows // present))
    tenants = [jax.device_put(np.int32(x)) for x in mixed(fleet, present, present)]
    return Run(fleet.alone, [(fleet.params, bank, x, inputs) for x in tenants])


def mixed(fleet: Fleet, rows: int, present: int) -> np.ndarray:
    """Assign `present` distinct tenants to a batch's rows, in turn."""
    generator = np.random.default_rng(present)
    return np.resize(generator.choice(fleet.tenants, present, replace=False), rows)


def compiled(run: Run) -> float:
    """Return the seconds of a first call, which are mostly compilation."""
    return clock.first(lambda _: run(), jax.block_until_ready)


def step(
    fleet: Fleet, batch: Batch, contender: Contender, run: Run, *, limit: float
) -> Step:
    """Time a compiled run in turn with its base.

    Args:
      fleet: The model and its tenants.
      batch: Made into `run`.
      contender: Made into `run`.
      run: Made by `made`, and called once.
      limit: The approximate seconds to spend.
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
