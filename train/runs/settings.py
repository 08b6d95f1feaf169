"""Settings of one run: a task, a method, and members trained side by side.

A member is a seed with a learning rate; the run has one for each pair of these. All
values that decide a run's numbers are fields of `Run`. Runs on the host.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from train.data import arrays, stream
from train.data.batch import Examples, Stream
from train.methods import METHODS, Config
from train.models import pretrained
from train.models.adapted import Model
from train.runs import trainer

CHUNK = 100
"""Steps in one call of the compiled program; between calls, a run reports or stops."""

# Larger values would become infinite on the device.
_LARGEST = float(np.finfo(np.float32).max)

_RANGES = {
    **dict.fromkeys(("steps", "batch", "accumulate", "devices"), (1, math.inf)),
    "max_length": (2, math.inf),  # Of the first and the last token.
    "warmup": (0, 1),
    "weight_decay": (0, _LARGEST),
    "clip": (1e-6, math.inf),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one run.

    Attributes:
      task: One of `train.subjects`.
      method: The method that trains the adapters, with its own settings.
      seeds: The members' seeds, for the classifier, the factors and the batches.
      learning_rates: The members' rates: each seed trains with each of them.
      steps: The number of steps, whatever the size of the data.
      batch: Examples a step.
      max_length: The maximal number of tokens of a sentence; the rest is dropped.
      warmup: The share of the steps in which the learning rate rises; then it falls
        to zero.
      weight_decay: The weight decay of AdamW.
      clip: The largest norm of a gradient.
      accumulate: The number of parts of a batch, computed one after the other.
      dtype: The dtype of the computations; the trained params are float32.
      devices: The number of devices to divide a batch over.
      model: The repository of the frozen model on the hub, for a task that can take
        several. Empty, it is the task's own.
      backbone: The sha256 of the frozen model's weights. Empty, it is not checked.
    """

    task: str = "movie"
    method: Config = METHODS["lora"]
    seeds: tuple[int, ...] = (0,)
    learning_rates: tuple[float, ...] = (1e-3,)
    steps: int = 1500
    batch: int = 32
    max_length: int = 48
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    devices: int = 1
    model: str = ""
    backbone: str = pretrained.SHA256

    @property
    def members(self) -> list[tuple[int, float]]:
        """The seed and the learning rate of each member."""
        return list(itertools.product(self.seeds, self.learning_rates))

    def check(self) -> None:
        """Check the values beyond their types.

        Raises:
          ValueError: with the wrong value and the expected one.
        """
        for name, (least, most) in _RANGES.items():
            if not least <= (got := getattr(self, name)) <= most:  # Nor is NaN.
                upper = f" and at most {most:g}" if most < math.inf else ""
                raise ValueError(
                    f"{name} is {got:g}, expected at least {least:g}{upper}."
                )
        for name, most in (("seeds", 2**31 - 1), ("learning_rates", _LARGEST)):
            got = getattr(self, name)
            # Equal members would train twice, and share a folder.
            if not got or len(set(got)) < len(got):
                raise ValueError(f"{name} is {list(got)}, expected different numbers.")
            if not all(0 <= x <= most for x in got):
                raise ValueError(
                    f"{name} is {list(got)}, expected numbers from 0 to {most:g}."
                )
        if self.batch % (self.accumulate * self.devices):
            raise ValueError(
                f"A batch of {self.batch} cannot be computed in {self.accumulate} "
                f"equal parts on {self.devices} devices. Choose a batch that is a "
                f"multiple of {self.accumulate * self.devices}, or fewer parts or "
                "devices."
            )
        if self.devices > jax.device_count():
            raise ValueError(
                f"devices is {self.devices}, and this machine has "
                f"{jax.device_count()} for JAX."
            )

    def trainer(self, model: Model) -> trainer.Trainer:
        """Return the compiled program's settings: all but task, seeds and rates."""
        return trainer.Trainer(
            model=model,
            config=self.method,
            steps=self.steps,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            clip=self.clip,
            accumulate=self.accumulate,
            dtype=self.dtype,
        )


class Inputs(NamedTuple):
    """The inputs of a run, on the device.

    Attributes:
      run: The run's settings.
      trainer: The settings of its program.
      base: The frozen params, without the classifier.
      data: The training data, on the device or streamed to it.
      rates: The members' learning rates.
      seeds: The members' seeds.
      rows: The examples of the members' batches, on the host.
    """

    run: Run
    trainer: trainer.Trainer
    base: trainer.Params
    data: Examples | Stream
    rates: Float[jax.Array, "M"]
    seeds: Int[jax.Array, "M"]
    rows: Int[np.ndarray, "M S B"]


class Progress(NamedTuple):
    """The state of a run between two calls of its program.

    Attributes:
      learners: The members.
      step: The number of finished steps.
      metrics: Metrics of the steps since the last progress, `[M, S]` each.
    """

    learners: trainer.Learner
    step: int
    metrics: trainer.Metrics


def inputs(run: Run, model: Model, base: trainer.Params, data: arrays.Data) -> Inputs:
    """Load the inputs of a run.

    Raises:
      ValueError: if a setting is impossible.
    """
    run.check()
    seeds, rates = zip(*run.members, strict=True)
    orders = {
        # One order a seed: its members see the same batches at every rate.
        seed: arrays.order(seed, data.examples, run.steps, run.batch)
        for seed in run.seeds
    }
    train = data.train
    return Inputs(
        run=run,
        trainer=run.trainer(model),
        base=jax.tree.map(jnp.asarray, base),
        data=train if isinstance(train, Stream) else jax.tree.map(jnp.asarray, train),
        rates=jnp.array(rates, jnp.float32),
        seeds=jnp.array(seeds, jnp.int32),
        rows=np.stack([orders[seed] for seed in seeds]),
    )


def begin(given: Inputs) -> trainer.Learner:
    """Return the members at their start."""
    count = max(given.trainer.method.gradient_batches, 1)
    data, rows = next(chunks(given, 0, count, count))
    # Methods without gradients need one batch, for the head's shapes.
    return trainer.begin(
        given.trainer, given.seeds, given.rates, given.base, data, rows
    )


def advance(
    given: Inputs, learners: trainer.Learner, step: int = 0, *, chunk: int = CHUNK
) -> Iterator[Progress]:
    """Yield the members after every `chunk` steps, from `step` to the last.

    The given members are donated to the program: only the yielded ones are valid.
    """
    # Params are replicated and batches sharded: data parallelism.
    whole, divided = _placers(given.run.devices)
    # Where the program leaves them: its second call is compiled as the first.
    learners, base = whole(learners), whole(given.base)
    for data, rows in chunks(given, step, given.run.steps, chunk):
        learners, metrics = trainer.advance(
            given.trainer, learners, given.rates, base, whole(data), divided(rows)
        )
        step += rows.shape[1]
        yield Progress(learners, step, metrics)


def chunks(
    given: Inputs, start: int, stop: int, size: int
) -> Iterator[tuple[Examples, Int[np.ndarray, "M S B"]]]:
    """Yield the batches of the steps from `start` until `stop`, `size` steps at a time.

    The rows index the examples beside them. A stream's next examples are made while
    these are in use; each seed has its own, shared by its members.
    """
    run = given.run
    if isinstance(given.data, Stream):
        streamed = stream.joined(
            given.data,
            run.seeds,
            steps=run.steps,
            batch=run.batch,
            start=start,
            stop=min(stop, run.steps),
            size=size,
        )
        for data, rows in streamed:
            # Members of a seed share its rows, whatever their rate.
            yield data, np.repeat(rows, len(run.learning_rates), axis=0)
    else:
        for first in range(start, stop, size):
            yield given.data, given.rows[:, first : min(first + size, stop)]


def _placers(devices: int) -> tuple[Callable[[Any], Any], Callable[[np.ndarray], Any]]:
    """Return functions to replicate a tree over devices and to shard batches.

    Rows are `[M, S, B]`, and each device has its part of every batch.
    """
    if devices == 1:
        return lambda tree: tree, jnp.asarray
    mesh = jax.make_mesh(
        # Auto: the compiler places intermediate values.
        (devices,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
    )
    specs = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(None, None, "data")
    whole, divided = (
        functools.partial(jax.device_put, device=jax.NamedSharding(mesh, spec))
        for spec in specs
    )
    return whole, divided
