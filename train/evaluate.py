"""Accuracy of a classifier with the adapters that it is given.

All adapters of one shape run in the same compiled program: `pad` brings a child to the
shape of its parent, exactly, with zeros.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int

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
    variables = {"params": params, "lora": lora}
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


def pad(lora: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `lora` with zeros up to the ranks of `like`; the function is the same.

    A module that only `like` adapts gets factors of zeros.

    Args:
      lora: The factors `a: [m, k]`, `b: [k, n]` of each module, by nested path.
      like: Factors `a: [m, r]`, `b: [r, n]` with `r >= k`.

    Raises:
      ValueError: if `lora` adapts a module that `like` does not, or does not fit in.
    """
    factors: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(lora)
    models: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(like)
    if unknown := sorted("/".join(path) for path in factors.keys() - models.keys()):
        raise ValueError(
            f"Cannot pad {unknown}: the other adapters have no such factors. Pad a "
            "child to its own parent."
        )
    return flax.traverse_util.unflatten_dict(
        {path: _grow(path, factors.get(path), x) for path, x in models.items()}
    )


def _grow(
    path: tuple[str, ...],
    factor: Float[jax.Array | np.ndarray, "_ _"] | None,
    like: Float[jax.Array | np.ndarray, "_ _"],
) -> Float[jax.Array, "_ _"]:
    if factor is None:
        return jnp.zeros_like(like)
    after = [want - got for got, want in zip(factor.shape, like.shape, strict=True)]
    if min(after) < 0:
        raise ValueError(
            f"Cannot pad '{'/'.join(path)}' from {factor.shape} to {like.shape}: it is "
            "larger. Pad a child to its own parent."
        )
    return jnp.pad(jnp.asarray(factor), [(0, x) for x in after])
