"""The classes that classifiers name, each with its own adapters, and scores of them.

`train.evaluation.evaluate` counts what is right. Other measures, such as Matthews'
correlation, need each prediction beside its label.

Axis letters: `C` classifiers with their adapters, `B` examples of a batch, `N` of all
batches. Host code around one compiled program.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from train.data.batch import NO_LABEL, Batch
from train.evaluation import evaluate
from train.models.adapted import Model


def scored(
    score: Callable[[Int[np.ndarray, "N"], Int[np.ndarray, "N"]], float],
) -> evaluate.Accuracies:
    """Returns what evaluates many classifiers by a score, as `accuracies` by a share.

    Args:
      score: Of the predictions of one of them, and the labels.
    """

    def scores(
        model: Model,
        base: Mapping[str, Any],
        heads: Mapping[str, Any],
        lora: Mapping[str, Any],
        batches: Sequence[Batch],
        *,
        at_once: int = evaluate.AT_ONCE,
    ) -> Float[np.ndarray, "C"]:
        found = predictions(model, base, heads, lora, batches, at_once=at_once)
        wanted = labels(batches)
        return np.array([score(x, wanted) for x in found], float)

    return scores


def predictions(
    model: Model,
    base: Mapping[str, Any],
    heads: Mapping[str, Any],
    lora: Mapping[str, Any],
    batches: Sequence[Batch],
    *,
    at_once: int = evaluate.AT_ONCE,
) -> Int[np.ndarray, "C N"]:
    """Returns the class that each of many classifiers names, in the order of `labels`.

    Args:
      model: Maps the inputs of a batch to logits.
      base: The frozen params, without the classifier.
      heads: The classifiers: leaves `[C, ...]`.
      lora: Their adapters, as `para_jax.to_params` gives them, with leaves `[C, ...]`.
      batches: The examples, with a label each; rows that fill up are left out.
      at_once: How many of the classifiers are in one call of the compiled program.

    Raises:
      ValueError: if there are no batches.
    """
    evaluate.check(batches)
    count = len(jax.tree.leaves((heads, lora))[0])
    base = jax.tree.map(jnp.asarray, base)
    counts = np.concatenate([np.asarray(x.labels) != NO_LABEL for x in batches])
    found = []
    for some in evaluate.groups((heads, lora), at_once):
        named = [_predict_each(model, base, *some, batch.inputs) for batch in batches]
        found.append(np.concatenate(jax.device_get(named), axis=1)[:, counts])
    return np.concatenate(found)[:count]


def labels(batches: Sequence[Batch]) -> Int[np.ndarray, "N"]:
    """Returns the labels that count, one batch after the other."""
    found = np.concatenate([np.asarray(x.labels) for x in batches])
    return found[found != NO_LABEL]


@functools.partial(jax.jit, static_argnames="model")
def _predict_each(
    model: Model,
    base: Mapping[str, Any],
    heads: Mapping[str, Any],
    lora: Mapping[str, Any],
    inputs: Any,
) -> Int[jax.Array, "C B"]:
    def predict(variables: Mapping[str, Any]) -> jax.Array:
        logits: Any = model.apply(variables, inputs)
        return jnp.argmax(logits, axis=-1)

    return evaluate.on_each(predict, base, heads, lora)
