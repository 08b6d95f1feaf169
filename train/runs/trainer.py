"""One training run as a pure program: many steps, and many members, in one call.

A member is a seed with a learning rate. The members of a run are mapped over, and read
the same frozen base, so that five seeds at three learning rates cost little more than
their arithmetic:

    learners = begin(trainer, seeds, rates, base, data, rows)
    learners, metrics = advance(trainer, learners, rates, base, data, rows)

Axis letters: `M` members, `S` steps, `B` examples. Traceable under `jit`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

import para_jax as para
from train.data.batch import Examples
from train.methods import method
from train.methods.method import Config, Kernels, Method, State
from train.models import classifier
from train.models.adapted import Model
from train.models.score import Score, score

Params = Mapping[str, Any]


class Learner(NamedTuple):
    """The state of one member in training.

    Attributes:
      state: The state of the method.
      head: The classifier, trained with the adapters; empty if the model has none.
      optimizer: The moments of both.
      step: The number of finished steps.
    """

    state: State
    head: dict[str, jax.Array]
    optimizer: Any
    step: jax.Array


class Metrics(NamedTuple):
    """Metrics of each step of each member, before its update.

    Attributes:
      loss: Cross entropy, the method's penalty excluded.
      accuracy: On the batch: the share of the labels that count.
      norm: The norm of the gradient, before clipping.
    """

    loss: Float[jax.Array, "*steps"]
    accuracy: Float[jax.Array, "*steps"]
    norm: Float[jax.Array, "*steps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """The constants of a run. Static: each one compiles its own program.

    Attributes:
      model: Maps the inputs of a batch to logits.
      config: The method that trains the adapters, by its settings: equal ones share a
        compiled program.
      steps: All steps. The learning rate rises, then falls to zero at this step.
      warmup: The share of the steps in which the learning rate rises.
      weight_decay: The weight decay of AdamW.
      clip: The largest norm of a gradient.
      accumulate: The number of parts of a batch, computed one after the other.
      dtype: The dtype of the computations. The trained params are float32.
    """

    model: Model
    config: Config
    steps: int
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def method(self) -> Method:
        return _built(self.config, self.steps)

    def schedule(self, rate: jax.Array) -> optax.Schedule:
        """Return the learning rate by step: linear warm-up, and linear decay."""
        # At least one step each, in runs of a few steps.
        rise = max(1, round(self.warmup * self.steps))
        fall = max(1, self.steps - rise)
        return lambda step: (
            # From `step + 1`: the first step has a learning rate above 0.
            rate * jnp.minimum((step + 1) / rise, (self.steps - step) / fall)
        )

    def optimizers(self, rate: jax.Array) -> tuple[optax.GradientTransformation, ...]:
        """Return the optimizers of the method's params and of the classifier."""
        schedule = self.schedule(rate)
        makers = (self.method.optimizer, method.adamw)
        return tuple(make(schedule, self.weight_decay) for make in makers)


# Cached: `trainer.method` is read many times in one trace.
@functools.cache
def _built(config: Config, steps: int) -> Method:
    return config.method(steps)


@functools.partial(jax.jit, static_argnames="trainer")
def begin(
    trainer: Trainer,
    seeds: Int[jax.Array, "M"],
    rates: Float[jax.Array, "M"],
    base: Params,
    data: Examples,
    rows: Int[jax.Array, "M S B"],
) -> Learner:
    """Return the members at their start, all leaves with a leading axis `M`.

    Args:
      trainer: The run.
      seeds: Equal seeds start from the same classifier, and the same factors where
        the method draws them alike.
      rates: The learning rates.
      base: The frozen params of the model, without the classifier.
      data: The training data.
      rows: The batches, for a method that starts from gradients.
    """

    def one(seed: jax.Array, rate: jax.Array, rows: jax.Array) -> Learner:
        # Two keys: the head is the same for all methods of a seed.
        first, second = jax.random.split(jax.random.key(seed))
        head = classifier.draw(trainer.model, first, data.batch(rows[0]))
        gradients = None
        if count := trainer.method.gradient_batches:
            gradients = _gradients(trainer, base, head, data, rows[:count])
        kernels = trainer.model.adapted.kernels(base)
        state = trainer.method.init(second, kernels, gradients)
        ours, heads = trainer.optimizers(rate)
        optimizer = ours.init(state.params), heads.init(head)
        return Learner(state, head, optimizer, jnp.zeros((), jnp.int32))

    if trainer.method.gradient_batches:
        # Gradients of all kernels are as large as the model: one member's at a time.
        return jax.lax.map(lambda each: one(*each), (seeds, rates, rows))
    return jax.vmap(one)(seeds, rates, rows)


@functools.partial(jax.jit, static_argnames="trainer", donate_argnames="learners")
def advance(
    trainer: Trainer,
    learners: Learner,
    rates: Float[jax.Array, "M"],
    base: Params,
    data: Examples,
    rows: Int[jax.Array, "M S B"],
) -> tuple[Learner, Metrics]:
    """Train the members on `rows`; return them, and metrics `[M, S]`."""
    # Cast once, outside of the scan: the base does not change.
    base = _cast(base, trainer.dtype)

    def one(learner: Learner, rate: jax.Array, rows: jax.Array) -> Any:
        step = functools.partial(_step, trainer, rate, base, data)
        return jax.lax.scan(step, learner, rows)

    return jax.vmap(one)(learners, rates, rows)


def variables(
    model: Model, base: Params, head: Params, adapters: Mapping[str, para.Adapter]
) -> dict[str, Any]:
    """Return the variables for `model.apply`."""
    lora = model.adapted.collection(adapters)
    return {"params": {**base, "classifier": head}, "lora": lora}


def _step(
    trainer: Trainer,
    rate: jax.Array,
    base: Params,
    data: Examples,
    learner: Learner,
    rows: Int[jax.Array, "B"],
) -> tuple[Learner, Metrics]:
    trained = learner.state.params, learner.head
    grads, (loss, accuracy) = _mean_grads(trainer, trained, learner, base, data, rows)
    norm = optax.tree.norm(grads)
    # A zero gradient would make the quotient NaN.
    shrink = jnp.minimum(1.0, trainer.clip / jnp.maximum(norm, 1e-12))
    grads = jax.tree.map(lambda x: x * shrink, grads)
    (params, ours), (head, heads) = (
        _moved(*each)
        for each in zip(
            trainer.optimizers(rate), grads, learner.optimizer, trained, strict=True
        )
    )
    # The step before the increment: methods count from 0.
    state = trainer.method.after_step(
        learner.state, learner.state._replace(params=params), grads[0], learner.step
    )
    after = Learner(state, head, (ours, heads), learner.step + 1)
    return after, Metrics(loss, accuracy, norm)


def _moved(
    optimizer: optax.GradientTransformation, grads: Any, moments: Any, params: Any
) -> tuple[Any, Any]:
    updates, moments = optimizer.update(grads, moments, params)
    return optax.apply_updates(params, updates), moments


def _mean_grads(
    trainer: Trainer,
    trained: Any,
    learner: Learner,
    base: Params,
    data: Examples,
    rows: Int[jax.Array, "B"],
) -> tuple[Any, Score]:
    """Return the gradients of a batch, averaged over its parts."""

    def part(rows: jax.Array) -> tuple[Any, Score]:
        def loss(trained: Any) -> Any:
            params, head = trained
            state = learner.state._replace(params=params)
            # Through `adapters`, so that gradients are those of the method's own
            # params.
            adapters = trainer.method.adapters(state)
            found = _score(trainer, base, head, adapters, data, rows)
            return found.loss + trainer.method.penalty(state), found

        return jax.grad(loss, has_aux=True)(trained)

    if trainer.accumulate == 1:
        return part(rows)
    # Interleaved, so that devices that share a batch share each part of it too.
    # Sequential: only one part's activations are in memory at a time.
    parts = jax.lax.map(part, rows.reshape(-1, trainer.accumulate).T)
    return jax.tree.map(lambda x: x.mean(0), parts)


def _score(
    trainer: Trainer,
    base: Params,
    head: Params,
    adapters: Mapping[str, para.Adapter],
    data: Examples,
    rows: Int[jax.Array, "B"],
) -> Score:
    """Return the score of a batch, in float32."""
    batch = data.batch(rows)
    given = variables(trainer.model, base, head, adapters)
    # Master weights stay float32; the cast is inside of the gradient.
    return score(trainer.model, *_cast((given, batch), trainer.dtype))


def _gradients(
    trainer: Trainer,
    base: Params,
    head: Params,
    data: Examples,
    rows: Int[jax.Array, "S B"],
) -> Kernels:
    """Return the mean gradient of the kernels to adapt, over the batches `rows`."""
    adapted = trainer.model.adapted
    kernels = adapted.kernels(base)

    def loss(kernels: Kernels, rows: jax.Array) -> jax.Array:
        changed = adapted.replaced(base, kernels)
        return _score(trainer, changed, head, {}, data, rows).loss

    def add(total: Kernels, rows: jax.Array) -> tuple[Kernels, None]:
        grads = jax.grad(loss)(kernels, rows)
        return jax.tree.map(jnp.add, total, grads), None

    zero = jax.tree.map(jnp.zeros_like, kernels)
    total, _ = jax.lax.scan(add, zero, rows)
    return jax.tree.map(lambda x: x / len(rows), total)


def _cast(tree: Any, dtype: str) -> Any:
    """Cast the floating-point leaves of a tree to `dtype`."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)
