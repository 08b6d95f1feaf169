"""The loss of a causal language model, without all of its logits at once.

With a vocabulary of 262,208, the logits of 8 sequences of 1,024 tokens take 8.6 GB in
float32, and their gradients as much again. Here they exist for some tokens at a time;
the gradient is computed with the loss, so that nothing is computed twice.

Axis letters: `B` sequences, `T` tokens, `n` tokens of all sequences, `d` model width,
`V` vocabulary. Traceable under `jit`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from para_jax import Array
from train.data.batch import NO_LABEL, Batch
from train.models.score import Score

CHUNK = 1024
"""The number of tokens with logits in memory at a time."""


class Targets(NamedTuple):
    """The tokens to predict, and their weights."""

    ids: Int[jax.Array, "..."]
    weights: Float[jax.Array, "..."]


class Sums(NamedTuple):
    """Weighted sums over tokens: of the cross entropy, and of correct predictions.

    A token is right if no other has a larger logit, nor an equal one before it.
    """

    loss: Float[Array, ""]
    right: Float[Array, ""]


_NOTHING = Sums(np.zeros((), np.float32), np.zeros((), np.float32))


def causal_score(
    model: Any,
    variables: Mapping[str, Any],
    batch: Batch,
    *,
    chunk: int = CHUNK,
) -> Score:
    """Return the mean cross entropy of the labels, and the accuracy.

    Args:
      model: A model with `hidden`, `head` and `softcap`, as `decoder.Causal`.
      variables: Its params and, in the collection `lora`, any adapters.
      batch: Tokens `[B, T]`, and after each of them the next one, as far as it counts.
      chunk: The number of tokens with logits in memory at a time.
    """
    state: Any = model.apply(variables, batch.inputs, method="hidden")
    x = state.x.reshape(-1, state.x.shape[-1])
    labels = jnp.asarray(batch.labels).reshape(-1)
    counts = labels != NO_LABEL
    # Any valid index: its weight is 0.
    targets = Targets(jnp.where(counts, labels, 0), counts.astype(jnp.float32))
    table = model.head(variables["params"])
    sums = cross_entropy(x, table, targets, model.softcap, min(chunk, len(x)))
    # A batch of padding alone has a loss of 0, not NaN.
    total = jnp.maximum(counts.sum(), 1)
    return Score(sums.loss / total, jax.lax.stop_gradient(sums.right) / total)


def causal_loss(
    model: nn.Module,
    variables: Mapping[str, Any],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    chunk: int = CHUNK,
) -> Float[jax.Array, ""]:
    """Return the mean cross entropy of the tokens of `mask`, each given all before it.

    Args:
      model: As for `causal_score`.
      variables: Likewise.
      ids: Sequences from their beginning, padded after their end.
      mask: True for the tokens to learn: neither prompts nor padding. A first token is
        never learned, since nothing precedes it.
      chunk: As for `causal_score`.
    """
    # The last position has no next token.
    learned = jnp.roll(mask, -1, axis=1).at[:, -1].set(False)
    labels = jnp.where(learned, jnp.roll(ids, -1, axis=1), NO_LABEL)
    return causal_score(model, variables, Batch(ids, labels), chunk=chunk).loss


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def cross_entropy(
    x: Float[jax.Array, "n d"],
    table: Float[jax.Array, "V d"],
    targets: Targets,
    softcap: float | None,
    chunk: int,
) -> Sums:
    """Return sums over tokens with probabilities `softmax(x @ table.T)`.

    The loss is differentiable in `x` and, at the cost of another product, in `table`.
    In float32; products of bfloat16 are summed in float32.

    Args:
      x: The hidden states behind the logits.
      table: The head.
      targets: `[n]`.
      softcap: If given, the bound of logits: `c tanh(x / c)`.
      chunk: The number of tokens with logits in memory at a time.
    """

    # Logits of one chunk at a time: all of them would take `n V` floats.
    def add(total: Sums, part: Any) -> tuple[Sums, None]:
        sums, _ = _part(part, table, softcap)
        return jax.tree.map(jnp.add, total, sums), None

    return jax.lax.scan(add, _NOTHING, _chunks(x, targets, chunk))[0]


def _forward(
    x: Any, table: Any, targets: Any, softcap: float | None, chunk: int
) -> tuple[Sums, Any]:
    """Return the sums, and the gradients of the loss by `x` and `table`."""
    # A frozen table needs no gradient, and saves `V d` floats.
    wanted, head = table.perturbed, table.value
    known = jax.tree.map(
        lambda a: a.value, targets, is_leaf=lambda a: hasattr(a, "perturbed")
    )

    def add(sums: Any, part: Any) -> tuple[Any, jax.Array]:
        found, slope = _part(part, head, softcap)
        total, by_table = sums
        # Accumulated in float32: bfloat16 sums over thousands of tokens lose digits.
        if wanted:
            by_table += jnp.matmul(slope.T, part[0], preferred_element_type=jnp.float32)
        total = jax.tree.map(jnp.add, total, found)
        return (total, by_table), slope @ head.astype(slope.dtype)

    zero = jnp.zeros(head.shape if wanted else (), jnp.float32)
    parts = _chunks(x.value, known, chunk)
    (total, by_table), by_x = jax.lax.scan(add, (_NOTHING, zero), parts)
    by_x = by_x.reshape(-1, x.value.shape[1])[: len(x.value)]
    return total, (by_x, by_table.astype(head.dtype) if wanted else None)


def _backward(
    softcap: float | None, chunk: int, gradients: Any, cotangent: Sums
) -> tuple[Any, Any, None]:
    del softcap, chunk
    # The forward pass made the gradients; here they are only scaled.
    by_x, by_table = jax.tree.map(
        lambda x: (cotangent.loss * x.astype(jnp.float32)).astype(x.dtype), gradients
    )
    return by_x, by_table, None


cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _chunks(x: jax.Array, targets: Targets, chunk: int) -> Any:
    """Return `(x, targets)` as `[chunks, chunk, ...]`, filled up with weights of 0."""
    more = -len(x) % chunk

    def split(a: Array) -> jax.Array:
        a = jnp.pad(a, [(0, more)] + [(0, 0)] * (a.ndim - 1))
        return a.reshape(-1, chunk, *a.shape[1:])

    return jax.tree.map(split, (x, targets))


def _part(
    part: tuple[Float[jax.Array, "n d"], Targets],
    table: Float[jax.Array, "V d"],
    softcap: float | None,
) -> tuple[Sums, Float[jax.Array, "n V"]]:
    """Return the sums of one chunk, and the loss's gradient by `x @ table.T`."""
    x, targets = part
    logits = jnp.matmul(x, table.T.astype(x.dtype), preferred_element_type=jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    # One gather; a one-hot product would be as large as the logits.
    own = jnp.take_along_axis(logits, targets.ids[:, None], axis=-1)
    weights = targets.weights[:, None]
    here = jnp.arange(logits.shape[1])[None] == targets.ids[:, None]
    slope = weights * (jnp.exp(logits - total) - here)
    # The derivative of `c tanh(z / c)` by `z`, from its own value.
    if softcap is not None:
        slope *= 1 - jnp.square(logits / softcap)
    right = logits.argmax(axis=-1) == targets.ids
    sums = Sums((weights * (total - own)).sum(), (targets.weights * right).sum())
    return sums, slope.astype(x.dtype)
