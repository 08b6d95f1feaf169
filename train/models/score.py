"""A model's score on the labels of a batch: loss and accuracy.

A model may compute it in its own way, for example if its logits are too many to be in
memory at once. Traceable under `jit`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from train.data.batch import NO_LABEL, Batch


class Score(NamedTuple):
    """Means over the labels of a batch, without `NO_LABEL`; 0 if there are none.

    Attributes:
      loss: The cross entropy, float32.
      accuracy: The share of the labels that the model gives the largest logit.
    """

    loss: Float[jax.Array, ""]
    accuracy: Float[jax.Array, ""]


@runtime_checkable
class Scorer(Protocol):
    """A model with a method for its score."""

    def score(self, variables: Mapping[str, Any], batch: Batch) -> Score:
        """Return the score of a batch."""
        ...


def score(model: Any, variables: Mapping[str, Any], batch: Batch) -> Score:
    """Return the score of a batch, by the model's own method or from all logits.

    Args:
      model: A `Scorer`, or a Linen module that maps the inputs of a batch to logits
        `[B, classes]`, or `[B, T, classes]` where labels are `[B, T]`.
      variables: The variables for `apply`.
      batch: Inputs and labels.
    """
    if isinstance(model, Scorer):
        return model.score(variables, batch)
    logits = model.apply(variables, batch.inputs).astype(jnp.float32)
    labels = jnp.asarray(batch.labels)
    counts = labels != NO_LABEL
    losses = optax.softmax_cross_entropy_with_integer_labels(
        # Any valid class: these rows are left out of both means.
        logits,
        jnp.where(counts, labels, 0),
    )
    right = jnp.argmax(logits, axis=-1) == labels
    # A batch of padding alone has a loss of 0, not NaN.
    total = jnp.maximum(counts.sum(), 1)
    return Score(losses.sum(where=counts) / total, right.sum(where=counts) / total)
