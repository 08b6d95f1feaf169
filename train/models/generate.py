"""Greedy generation with a causal model and a cache of keys and values.

The model is `gemma3.Gemma3`, or one with its `hidden`, `logits` and `empty_cache`.
Every shape of prompts, and of adapters, is compiled once.

Axis letters: `B` prompts, `T` their tokens, `N` new tokens. Traceable under `jit`,
except for `padded`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Int

from train.models.attention import Cache

PAD = 0
"""The token after the end of a sequence, in prompts and in responses."""


class Prompts(NamedTuple):
    """Prompts of unequal lengths, aligned left and padded with `PAD`."""

    ids: Int[jax.Array | np.ndarray, "B T"]
    lengths: Int[jax.Array | np.ndarray, " B"]


class Generated(NamedTuple):
    """Generated tokens."""

    ids: jax.Array  # Integers `[B, N]`. After a stop token come `PAD`s.
    lengths: jax.Array  # Integers `[B]`: the tokens before the stop token.


class _Step(NamedTuple):
    """The state after `count` generated tokens."""

    count: Int[jax.Array, ""]
    token: Int[jax.Array, " B"]  # The last one.
    done: Bool[jax.Array, " B"]
    ids: Int[jax.Array, "B N"]
    cache: Cache


def padded(prompts: Sequence[Sequence[int]], *, multiple_of: int = 1) -> Prompts:
    """Pad prompts to one array.

    Args:
      prompts: The tokens of each; at least one.
      multiple_of: The multiple to round the longest length up to: fewer compilations.

    Raises:
      ValueError: if a prompt is empty.
    """
    # Rows are padded on the right, so positions begin at 0 in every row.
    lengths = np.array([len(x) for x in prompts], np.int32)
    if not lengths.all():
        raise ValueError(
            f"Prompt {int(lengths.argmin())} is empty, expected at least one token, "
            "such as <bos>: there is nothing to go on from."
        )
    # Each width compiles its own program.
    width = -(-lengths.max() // multiple_of) * multiple_of
    ids = np.full((len(prompts), width), PAD, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return Prompts(ids, lengths)


@functools.partial(jax.jit, static_argnames=("model", "tokens", "stop"))
def greedy(
    model: nn.Module,
    variables: Mapping[str, Any],
    prompts: Prompts,
    *,
    tokens: int,
    stop: tuple[int, ...] = (),
) -> Generated:
    """Generate by taking the most likely next token, again and again.

    Generation ends when every sequence has reached a stop token.

    Args:
      model: The model.
      variables: Its params and, in the collection `lora`, any adapters.
      prompts: From `padded`.
      tokens: The greatest number of new tokens, `N`.
      stop: The tokens that end a sequence. They are included in the result.
    """
    ids, lengths = map(jnp.asarray, prompts)
    ends = jnp.array(stop, ids.dtype)
    run: Any = functools.partial(model.apply, variables)

    def following(state: Any, last: Int[jax.Array, " B"]) -> Int[jax.Array, " B"]:
        # Only the last position's logits: the vocabulary is large.
        x = jnp.take_along_axis(state.x, last[:, None, None], axis=1)[:, 0]
        return run(x, method="logits").argmax(axis=-1).astype(ids.dtype)

    def more(step: _Step) -> Bool[jax.Array, ""]:
        return (step.count < tokens) & ~step.done.all()

    def body(step: _Step) -> _Step:
        # A new token overwrites the padding behind its prompt in the cache.
        positions = (lengths + step.count - 1)[:, None]
        state = run(step.token[:, None], positions, step.cache, method="hidden")
        token = following(state, jnp.zeros_like(lengths))
        return _written(step._replace(cache=state.cache), token, ends)

    batch, width = ids.shape
    # The cache has its final size at once: shapes in a while loop are fixed.
    cache = run(batch, width + tokens, method="empty_cache")
    state = run(ids, jnp.arange(width)[None], cache, method="hidden")
    start = _Step(
        count=jnp.int32(0),
        token=ids[:, 0],
        done=jnp.zeros((batch,), bool),
        ids=jnp.full((batch, tokens), PAD, ids.dtype),
        cache=state.cache,
    )
    first = _written(start, following(state, lengths - 1), ends)
    # A while loop, not a scan: it ends with the longest answer.
    end = jax.lax.while_loop(more, body, first)
    stopped = jnp.isin(end.ids, ends)
    # Without a stop token, argmax of an all-false row would say 0.
    ends_at = jnp.where(stopped.any(axis=1), stopped.argmax(axis=1), tokens)
    return Generated(end.ids, ends_at)


def _written(
    step: _Step, token: Int[jax.Array, " B"], ends: Int[jax.Array, " stops"]
) -> _Step:
    # Finished rows are computed along with the others, and write padding.
    token = jnp.where(step.done, PAD, token)
    return step._replace(
        count=step.count + 1,
        token=token,
        done=step.done | jnp.isin(token, ends),
        ids=step.ids.at[:, step.count].set(token),
    )
