"""How many examples classifiers get right, each with its own adapters.

Many adapters are evaluated in one call: they are stacked, and mapped over, beside one
frozen base. Adapters of equal shapes run in the same compiled program: `para_jax.pad`
brings a child to the shapes of its parent, exactly, with zeros.

Axis letters: `C` classifiers with their adapters, `B` examples.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from train.data.batch import Batch
from train.models.adapted import Model

AT_ONCE = 32
"""Classifiers in one call: a compiled program has one shape, and memory an end."""


@runtime_checkable
class Accuracies(Protocol):
    """What evaluates many adapters on one base, as `accuracies` does."""

    def __call__(
        self,
        model: Model,
        base: Mapping[str, Any],
        heads: Mapping[str, Any],
        lora: Mapping[str, Any],
        batches: Sequence[Batch],
        *,
        at_once: int = AT_ONCE,
    ) -> Float[np.ndarray, "C"]:
        """Returns the share of the examples that each of them gets right."""
        ...


def accuracy(
    model: Model,
    params: Mapping[str, Any],
    lora: Mapping[str, Any],
    batches: Sequence[Batch],
    *,
    on_batch: Callable[[int], object] = lambda examples: None,
) -> float:
    """Returns the share of the examples that the model classifies rightly.

    Args:
      model: Maps the inputs of a batch to logits.
      params: Its parameters.
      lora: Its adapters, as `para_jax.to_params` gives them.
      batches: The examples.
      on_batch: Called after each batch with its number of examples.

    Raises:
      ValueError: if there are no batches.
    """
    check(batches)
    # Once, not with every batch.
    variables = jax.tree.map(jnp.asarray, {"params": params, "lora": lora})
    right = total = 0
    for batch in batches:
        right += int(_count_right(model, variables, batch))
        total += batch.examples
        on_batch(batch.examples)
    return right / total


def accuracies(
    model: Model,
    base: Mapping[str, Any],
    heads: Mapping[str, Any],
    lora: Mapping[str, Any],
    batches: Sequence[Batch],
    *,
    at_once: int = AT_ONCE,
) -> Float[np.ndarray, "C"]:
    """Returns the accuracy of each of many classifiers on one base.

    Args:
      model: Maps the inputs of a batch to logits.
      base: The frozen params, without the classifier.
      heads: The classifiers: leaves `[C, ...]`.
      lora: Their adapters, as `para_jax.to_params` gives them, with leaves `[C, ...]`.
      batches: The examples.
      at_once: How many of the classifiers are in one call of the compiled program.

    Raises:
      ValueError: if there are no batches.
    """
    check(batches)
    count = len(jax.tree.leaves((heads, lora))[0])
    base = jax.tree.map(jnp.asarray, base)
    total = sum(batch.examples for batch in batches)
    rights = []
    for some in groups((heads, lora), at_once):
        counts = [_count_each_right(model, base, *some, batch) for batch in batches]
        rights.append(np.sum(jax.device_get(counts), axis=0))
    return np.concatenate(rights)[:count] / total


class Part(NamedTuple):
    """A part of a task to evaluate adapters on.

    Attributes:
      batches: The examples.
      accuracies: How; by default as classifiers.
    """

    batches: Sequence[Batch]
    accuracies: Accuracies = accuracies


def groups(members: Any, size: int) -> Iterator[Any]:
    """Yields `size` members at a time, on the device.

    The last of them are filled up with repetitions, so that all have one shape.

    Args:
      members: A tree of leaves `[C, ...]`.
      size: How many of them to yield at a time.
    """
    count = len(jax.tree.leaves(members)[0])
    for start in range(0, count, size):
        places = np.arange(start, start + size)
        places = np.where(places < count, places, start)
        yield jax.tree.map(lambda x: jnp.asarray(x[places]), members)  # noqa: B023


def on_each(
    function: Callable[[Mapping[str, Any]], jax.Array],
    base: Mapping[str, Any],
    heads: Mapping[str, Any],
    lora: Mapping[str, Any],
) -> jax.Array:
    """Returns what a function of a model's variables gives for each classifier. Traced.

    Args:
      function: Of the variables of one of them.
      base: The frozen params, without the classifier.
      heads: The classifiers: leaves `[C, ...]`.
      lora: Their adapters, leaves `[C, ...]`.
    """

    def one(head: Any, lora: Any) -> jax.Array:
        # Whatever a GPU does by default: children differ by little.
        with jax.default_matmul_precision("float32"):
            return function({"params": {**base, "classifier": head}, "lora": lora})

    return jax.vmap(one)(heads, lora)


def check(batches: Sequence[Batch]) -> None:
    """Checks that there is something to evaluate.

    Raises:
      ValueError: if there are no batches.
    """
    if not batches:
        raise ValueError("Nothing to evaluate: `batches` is empty.")


@functools.partial(jax.jit, static_argnames="model")
def _count_right(
    model: Model, variables: Mapping[str, Any], batch: Batch
) -> Int[jax.Array, ""]:
    logits: Any = model.apply(variables, batch.inputs)
    return jnp.sum(jnp.argmax(logits, axis=-1) == batch.labels)


@functools.partial(jax.jit, static_argnames="model")
def _count_each_right(
    model: Model,
    base: Mapping[str, Any],
    heads: Mapping[str, Any],
    lora: Mapping[str, Any],
    batch: Batch,
) -> Int[jax.Array, "C"]:
    count = functools.partial(_count_right, model, batch=batch)
    return on_each(count, base, heads, lora)
