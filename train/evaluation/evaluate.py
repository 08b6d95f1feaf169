"""Accuracy of classifiers, and the evaluator for many adapters on one base.

An evaluator stacks adapters and maps over them beside one frozen base. Adapters of
equal shapes share a compiled program: `para_jax.pad` brings a child to the shapes of
its parent, exactly, with zeros.

A counter grades the answers. There are three: right classes (here), predictions against
labels (`predict`), and generated answers (`exact_match`).

Axis letters: `C` models with their adapters, `G` models in one call, `B` examples.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from train.data.batch import Batch
from train.models.adapted import Model

AT_ONCE = 32
"""Models in one call; bounds the memory and the sizes to compile for."""


class Group(NamedTuple):
    """The models in one call of a compiled program.

    Attributes:
      heads: The classifiers, leaves `[G, ...]`.
      lora: The adapters, leaves `[G, ...]`.
      count: The number of models before the repetitions that fill up the last group.
    """

    heads: Any
    lora: Any
    count: int


Count = Callable[[Group], Shaped[np.ndarray, "G ..."]]
"""Grade the models of a group. Results of repetitions may be missing or arbitrary."""

Counter = Callable[[Model, Mapping[str, Any], Sequence[Batch]], Count]
"""Prepare to grade on a model, its frozen params on the device, and the batches."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluate many adapters on one base.

    Attributes:
      counter: Grades the models of one group on all batches.
      limit: Returns the number of models that fit into memory.
    """

    counter: Counter
    limit: Callable[[Model, Sequence[Batch]], int] = lambda model, batches: sys.maxsize

    def __call__(
        self,
        model: Model,
        base: Mapping[str, Any],
        heads: Mapping[str, Any],
        lora: Mapping[str, Any],
        batches: Sequence[Batch],
        *,
        at_once: int = AT_ONCE,
    ) -> Shaped[np.ndarray, "C ..."]:
        """Return the counter's result for each of many models.

        Args:
          model: Maps the inputs of a batch to logits.
          base: The frozen params, without the classifier.
          heads: The classifiers, leaves `[C, ...]`; empty for causal models.
          lora: Their adapters, as `para_jax.to_params` gives them, leaves `[C, ...]`.
          batches: The examples.
          at_once: The greatest number of models in one call of the compiled program.

        Raises:
          ValueError: if there are no batches.
        """
        check(batches)
        size = min(at_once, self.limit(model, batches))
        count = self.counter(model, jax.tree.map(jnp.asarray, base), batches)
        found = [count(x)[: x.count] for x in groups(heads, lora, size)]
        return np.concatenate(found)


def accuracy(
    model: Model,
    params: Mapping[str, Any],
    lora: Mapping[str, Any],
    batches: Sequence[Batch],
    *,
    on_batch: Callable[[int], object] = lambda examples: None,
) -> float:
    """Return the accuracy of one model.

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
    # Move the weights once here; a NumPy argument is copied with every call.
    variables = jax.tree.map(jnp.asarray, {"params": params, "lora": lora})
    right = total = 0
    for batch in batches:
        right += int(_count_right(model, variables, batch))
        total += batch.examples
        on_batch(batch.examples)
    return right / total


def _count_right_classes(
    model: Model, base: Mapping[str, Any], batches: Sequence[Batch]
) -> Count:
    """Grade classifiers by their accuracy."""
    total = sum(batch.examples for batch in batches)

    def share(group: Group) -> Float[np.ndarray, "G"]:
        # One transfer for all batches, so that the device never waits for the host.
        counts = [
            _count_each_right(model, base, group.heads, group.lora, batch)
            for batch in batches
        ]
        return np.sum(jax.device_get(counts), axis=0) / total

    return share


accuracies = Evaluator(_count_right_classes)
"""Return the accuracy of each of many classifiers."""


class Part(NamedTuple):
    """A part of a task to evaluate adapters on.

    Attributes:
      batches: The examples.
      accuracies: The evaluator; by default for classifiers.
    """

    batches: Sequence[Batch]
    accuracies: Evaluator = accuracies


def groups(heads: Any, lora: Any, size: int) -> Iterator[Group]:
    """Yield `size` models at a time, on the device.

    The last group is filled up with repetitions, so that all have one shape.

    Args:
      heads: The classifiers, leaves `[C, ...]`.
      lora: The adapters, leaves `[C, ...]`.
      size: The number of models to yield at a time.
    """
    total = len(jax.tree.leaves((heads, lora))[0])
    for start in range(0, total, size):
        places = np.arange(start, start + size)
        places = np.where(places < total, places, start)
        some = jax.tree.map(lambda x: jnp.asarray(x[places]), (heads, lora))  # noqa: B023
        yield Group(some[0], some[1], min(size, total - start))


def on_each(
    function: Callable[[Mapping[str, Any]], jax.Array],
    base: Mapping[str, Any],
    heads: Mapping[str, Any],
    lora: Mapping[str, Any],
) -> jax.Array:
    """Map a function of a model's variables over classifiers. Traceable under `jit`.

    Args:
      function: Maps the variables of one model to an array.
      base: The frozen params, without the classifier.
      heads: The classifiers: leaves `[C, ...]`.
      lora: Their adapters, leaves `[C, ...]`.
    """

    def one(head: Any, lora: Any) -> jax.Array:
        # GPUs round float32 products to TF32 by default; children differ by less.
        with jax.default_matmul_precision("float32"):
            return function({"params": {**base, "classifier": head}, "lora": lora})

    return jax.vmap(one)(heads, lora)


def check(batches: Sequence[Batch]) -> None:
    """Check that `batches` is not empty.

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
