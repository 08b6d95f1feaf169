"""Accuracy of a classifier with the adapters that it is given.

Adapters of equal shapes run in the same compiled program: `para_jax.pad` brings a child
to the shapes of its parent, exactly, with zeros.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Int

from train.data.tokens import Batch


def accuracy(
    model: nn.Module,
    params: Mapping[str, Any],
    lora: Mapping[str, Any],
    batches: Sequence[Batch],
    *,
    on_batch: Callable[[int], object] = lambda sentences: None,
) -> float:
    """Returns the share of the sentences that the model classifies rightly.

    Args:
      model: Maps `Tokens` to logits.
      params: Its parameters.
      lora: Its adapters, as `para_jax.to_params` gives them.
      batches: The sentences.
      on_batch: Called after each batch with its number of sentences.

    Raises:
      ValueError: if there are no batches.
    """
    if not batches:
        raise ValueError("No sentences to evaluate: `batches` is empty.")
    # Once, not with every batch.
    variables = jax.tree.map(jnp.asarray, {"params": params, "lora": lora})
    right = total = 0
    for batch in batches:
        right += int(_count_right(model, variables, batch))
        total += batch.sentences
        on_batch(batch.sentences)
    return right / total


@functools.partial(jax.jit, static_argnames="model")
def _count_right(
    model: nn.Module, variables: Mapping[str, Any], batch: Batch
) -> Int[jax.Array, ""]:
    logits: Any = model.apply(variables, batch.tokens)
    return jnp.sum(jnp.argmax(logits, axis=-1) == batch.labels)
