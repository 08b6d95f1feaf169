"""Predicted classes of classifiers, each with its own adapters, and scores of them.

`train.evaluation.evaluate` counts correct answers. Other measures, such as Matthews'
correlation, need each prediction beside its label.

Axis letters: `G` classifiers in one call, `B` examples of a batch, `N` of all batches.
Runs on the host, around one compiled program.
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
) -> evaluate.Evaluator:
    """Return the evaluator of classifiers by a score.

    Args:
      score: Maps the predictions of one classifier and the labels to a number.
    """

    def counter(
        model: Model, base: Mapping[str, Any], batches: Sequence[Batch]
    ) -> evaluate.Count:
        predict, wanted = _predict(model, base, batches), labels(batches)

        def scores(group: evaluate.Group) -> Float[np.ndarray, "G"]:
            return np.array([score(x, wanted) for x in predict(group)], float)

        return scores

    return evaluate.Evaluator(counter)


def _predict(
    model: Model, base: Mapping[str, Any], batches: Sequence[Batch]
) -> Callable[[evaluate.Group], Int[np.ndarray, "G N"]]:
    counts = np.concatenate([np.asarray(x.labels) != NO_LABEL for x in batches])

    def predict(group: evaluate.Group) -> Int[np.ndarray, "G N"]:
        named = [
            _predict_each(model, base, group.heads, group.lora, batch.inputs)
            for batch in batches
        ]
        found = np.concatenate(jax.device_get(named), axis=1)
        return found[: group.count, counts]

    return predict


predictions = evaluate.Evaluator(_predict)
"""Return the predicted class of each classifier, `[C, N]`, in the order of `labels`.

Each example has one label; rows that fill up a batch are left out.
"""


def labels(batches: Sequence[Batch]) -> Int[np.ndarray, "N"]:
    """Return the labels of all batches, without filling rows."""
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
