"""Greedy generation with a causal model that keeps its keys and values.

The model is `gemma3.Gemma3`, or one with its `hidden`, `logits` and `empty_cache`.
Every shape of prompts, and of adapters, is compiled once.

Axis letters: `B` prompts, `T` their tokens, `N` new tokens. Traced but for `padded`.
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
"""The token after the end of a sequence, in prompts as in what is generated."""


class Prompts(NamedTuple):
    """Prompts of unequal lengths, each from the left; `PAD` comes after their end."""

    ids: Int[jax.Array | np.ndarray, "B T"]
    lengths: Int[jax.Array | np.ndarray, " B"]


class Generated(NamedTuple):
    """What follows the prompts."""

    ids: jax.Array  # Integers `[B, N]`. After a stop token come `PAD`s.
    lengths: jax.Array  # Integers `[B]`: the tokens before the stop token.


class _Step(NamedTuple):
    """What is known before token `count` is generated."""

    count: Int[jax.Array, ""]
    token: Int[jax.Array, " B"]  # The next one.
    done: Bool[jax.Array, " B"]
    ids: Int[jax.Array, "B N"]
    cache: Cache


def padded(prompts: Sequence[Sequence[int]], *, multiple_of: int = 1) -> Prompts:
    """Returns prompts as one array.

    Args:
      prompts: The tokens of each; at least one.
      multiple_of: What to round the longest length up to, for fewer compilations.

    Raises:
      ValueError: if a prompt is empty.
    """
    lengths = np.array([len(x) for x in prompts], np.int32)
    if not lengths.all():
        raise ValueError(
            f"Prompt {int(lengths.argmin())} is empty, expected at least one token, "
            "such as <bos>: there is nothing to go on from."
        )
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
    """Returns the most likely next token, again and again.

    It ends when every sequence has come to a stop token.

    Args:
      model: The model.
      variables: Its params and, in the collection `lora`, any adapters.
      prompts: From `padded`.
      tokens: The greatest number of new tokens, `N`.
      stop: The tokens that end a sequence. They are part of what is returned.
    """
    ids, lengths = map(jnp.asarray, prompts)
    run: Any = functools.partial(model.apply, variables)
    ends = jnp.array(stop, ids.dtype)[None]

    def extended(step: _Step, state: Any, last: Int[jax.Array, " B"]) -> _Step:
        x = jnp.take_along_axis(state.x, last[:, None, None], axis=1)[:, 0]
        token = run(x, method="logits").argmax(axis=-1).astype(ids.dtype)
        return step._replace(token=jnp.where(step.done, PAD, token), cache=state.cache)

    def more(step: _Step) -> Bool[jax.Array, ""]:
        return (step.count < tokens) & ~step.done.all()

    def write(step: _Step) -> _Step:
        return step._replace(
            count=step.count + 1,
            done=step.done | (step.token[:, None] == ends).any(axis=1),
            ids=step.ids.at[:, step.count].set(step.token),
        )

    def body(step: _Step) -> _Step:
        positions = (lengths + step.count)[:, None]
        token = step.token[:, None]
        step = write(step)
        state = run(token, positions, step.cache, method="hidden")
        return extended(step, state, jnp.zeros_like(lengths))

    batch, width = ids.shape
    cache = run(batch, width + tokens, method="empty_cache")
    start = _Step(
        count=jnp.int32(0),
        token=jnp.full((batch,), PAD, ids.dtype),
        done=jnp.zeros((batch,), bool),
        ids=jnp.full((batch, tokens), PAD, ids.dtype),
        cache=cache,
    )
    prefilled = run(ids, jnp.arange(width)[None], cache, method="hidden")
    end = jax.lax.while_loop(more, body, extended(start, prefilled, lengths - 1))
    stopped = (end.ids[:, :, None] == ends[:, None]).any(axis=-1)
    return Generated(end.ids, _before(stopped, end))


def _before(stopped: Bool[jax.Array, "B N"], end: _Step) -> Int[jax.Array, " B"]:
    return jnp.where(stopped.any(axis=1), stopped.argmax(axis=1), end.count)
