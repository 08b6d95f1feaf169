"""Training within a time limit: AdamW, with a learning rate set by the clock.

The rate rises over the first twentieth of the budget and falls to zero along a cosine
at its end, whatever the machine's speed. Weights are updated in float32; the loss
chooses the dtype of its computation. Runs on the host, around one compiled program.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

Config = TypeVar("Config")

Loss = Callable[[Any, jax.Array, Any], Float[jax.Array, ""]]
"""From params, a key and the data on the device, to a number."""

_SECONDS = 10  # Between two lines.
_WARM_UP = 0.05
_DECAYED = ("kernel", "embedding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of training; the first one reached ends it.

    Attributes:
      minutes: The time, compilation included.
      steps: The number of updates. It is rounded up to whole chunks.
      chunk: The updates of one call to the device.
    """

    minutes: float = math.inf
    steps: float = math.inf
    chunk: int = 25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """The learning rate's peak and shape.

    Attributes:
      peak: The learning rate after the warm-up.
      decay: The weight decay of kernels and embeddings.
      clip: The largest norm of the gradient.
    """

    peak: float
    decay: float = 0.05
    clip: float = 1.0

    def at(self, progress: float) -> float:
        """Return the learning rate at a share, 0 to 1, of the budget."""
        rise = min(1.0, progress / _WARM_UP)
        return self.peak * rise * (1 + math.cos(math.pi * min(1.0, progress))) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Generic[Config]):
    """A model, and the settings of its training.

    Attributes:
      model: The model's shape.
      batch: The number of examples of an update.
      rate: The learning rate, and its decay and clipping.
      budget: The limits of training.
    """

    model: Config
    batch: int
    rate: Rate
    budget: Budget


class State(NamedTuple):
    """The state between updates."""

    params: Any
    moments: Any
    key: jax.Array


class Line(NamedTuple):
    """The report of one chunk."""

    steps: int
    loss: float  # The mean of the chunk.
    seconds: float  # Since the beginning.


class Printer:
    """Print a line every ten seconds, and count the steps.

    Attributes:
      unit: The name of the examples, as in `pictures`.
      each: The number of them in a step.
      steps: The steps so far.
    """

    def __init__(self, *, unit: str, each: int) -> None:
        self.unit = unit
        self.each = each
        self.steps = 0
        self._last = Line(0, math.nan, -math.inf)

    def __call__(self, line: Line) -> None:
        self.steps = line.steps
        seconds = line.seconds - self._last.seconds
        if seconds >= _SECONDS:
            speed = (line.steps - self._last.steps) * self.each / seconds
            self._last = line
            print(
                f"{line.seconds / 60:5.1f} min  step {line.steps:6d}  "
                f"loss {line.loss:7.4f}  {speed:,.0f} {self.unit}/s",
                flush=True,
            )


def train(
    loss: Loss,
    params: Any,
    data: Any,
    *,
    budget: Budget,
    rate: Rate,
    key: jax.Array,
    report: Callable[[Line], object] = lambda line: None,
) -> Any:
    """Train, and return the params.

    Args:
      loss: The loss to minimise, on a batch drawn from the data with the key.
      params: The start, in float32. They are donated.
      data: Arrays on the device.
      budget: The limits of training. The last chunk begins within them.
      rate: The learning rate.
      key: The key to draw batches with.
      report: Called after each chunk.

    Raises:
      ValueError: if the budget has no end, or the loss is not finite.
    """
    if math.isinf(budget.minutes) and math.isinf(budget.steps):
        raise ValueError("The budget has neither minutes nor steps: it would not end.")
    begin = time.monotonic()
    end = begin + 60 * budget.minutes
    optimizer = _optimizer(rate)
    state = State(params, optimizer.init(params), key)
    # Donated: params and moments are updated in place.
    update = jax.jit(_chunk(loss, optimizer), donate_argnums=0)
    # Compiled before the clock starts, so that compilation costs no training.
    update = update.lower(state, data, _rates(0.0, budget, rate)).compile()
    start, done, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        state, losses = update(state, data, _rates(progress, budget, rate))
        done += budget.chunk
        mean = float(losses.mean())  # Waits for the steps.
        # Read after waiting: dispatch alone returns at once.
        now = time.monotonic()
        line = Line(done, mean, now - begin)
        if not math.isfinite(line.loss):
            raise ValueError(
                f"After {done} steps the loss is {line.loss}: lower the learning rate, "
                f"{rate.peak:g}."
            )
        report(line)
        spent = (now - start) / max(end - start, 1e-9)
        # Whichever budget is further along decides the learning rate.
        progress = max(done / budget.steps, spent)
    return state.params


def _optimizer(rate: Rate) -> optax.GradientTransformation:
    """Return AdamW without its learning rate; each step passes its own."""
    return optax.chain(
        optax.clip_by_global_norm(rate.clip),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(rate.decay, mask=_is_decayed),
    )


def _is_decayed(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) in _DECAYED, params
    )


def _rates(progress: float, budget: Budget, rate: Rate) -> Float[np.ndarray, "S"]:
    """Return the learning rates of a chunk, all equal unless the budget is in steps."""
    one = min(1.0, 1 / budget.steps)
    # The middle of each step: the last one is not at a rate of 0.
    rates = [rate.at(progress + (i + 0.5) * one) for i in range(budget.chunk)]
    return np.array(rates, np.float32)


def _chunk(loss: Loss, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    def step(data: Any, state: State, rate: jax.Array) -> tuple[State, jax.Array]:
        key, now = jax.random.split(state.key)
        value, slopes = jax.value_and_grad(loss)(state.params, now, data)
        moves, moments = optimizer.update(slopes, state.moments, state.params)
        # Rates are arguments of the program, not constants: it compiles once.
        moves = jax.tree.map(lambda x: -rate * x, moves)
        return State(optax.apply_updates(state.params, moves), moments, key), value

    def chunk(
        state: State, data: Any, rates: Float[jax.Array, "S"]
    ) -> tuple[State, Float[jax.Array, "S"]]:
        return jax.lax.scan(lambda s, r: step(data, s, r), state, jnp.asarray(rates))

    return chunk
