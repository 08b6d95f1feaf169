"""Causal attention, full or over a sliding window, and its cache.

The key at index `s` has position `s`: sequences begin at index 0, and padding comes
after their end, where none of their queries looks.

Axis letters: `L` layers, `B` sequences, `T` queries, `S` keys, `h` heads, `g` heads of
keys and values, each for `h / g` queries, `e` their width. Traceable under `jit`.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

Implementation = Literal["xla", "cudnn"]


class Cache(NamedTuple):
    """The keys and values of all layers, by position."""

    k: jax.Array  # [L, B, S, g, e]
    v: jax.Array  # [L, B, S, g, e]


def empty(shape: tuple[int, int, int, int, int], dtype: DTypeLike) -> Cache:
    """Return an empty cache of the shape `[L, B, S, g, e]`."""
    return Cache(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))


def write(
    cache: Cache,
    layer: Int[jax.Array, ""],
    positions: Int[jax.Array, "#B T"],
    k: Float[jax.Array, "B T g e"],
    v: Float[jax.Array, "B T g e"],
    # Explicit rows: each sequence writes at its own positions.
) -> Cache:
    """Write keys and values of one layer at these positions."""
    rows = jnp.arange(k.shape[0])[:, None]
    places = (layer, rows, jnp.broadcast_to(positions, k.shape[:2]))
    return Cache(
        k=cache.k.at[places].set(k.astype(cache.k.dtype)),
        v=cache.v.at[places].set(v.astype(cache.v.dtype)),
    )


def visible(
    positions: Int[jax.Array, "#B T"],
    keys: int,
    *,
    sliding: Bool[jax.Array, ""],
    window: int,
) -> Bool[jax.Array, "#B T S"]:
    """Return the mask of visible keys of each query.

    Args:
      positions: The positions of the queries.
      keys: The number of keys `S`.
      sliding: Whether to look at no more than the last keys.
      window: The number of visible keys, including the query's own.
    """
    # Keys after the query's position are padding or not written yet.
    back = positions[:, :, None] - jnp.arange(keys)[None, None, :]
    return (back >= 0) & (~sliding | (back < window))


def masked(
    q: Float[jax.Array, "B T h e"],
    k: Float[jax.Array, "B S g e"],
    v: Float[jax.Array, "B S g e"],
    mask: Bool[jax.Array, "#B T S"],
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[jax.Array, "B T h e"]:
    """Return the values' averages under `softmax(scale * q k^T)`, masked.

    Args:
      q: The queries.
      k: The keys.
      v: The values.
      mask: From `visible`.
      scale: The scale of the products.
      softcap: If given, what the scaled products `x` are bound by: `c tanh(x / c)`.
    """
    # JAX's own has no cap on scores, but is faster.
    if softcap is None:
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=scale)
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    scores = jnp.einsum(
        "btgje,bsge->bgjts", grouped, k, preferred_element_type=jnp.float32
    )
    scores = softcap * jnp.tanh(scores * (scale / softcap))
    # A finite minimum: a row without visible keys gives NaN with -inf.
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bgjts,bsge->btgje", weights, v).reshape(q.shape)


def flash(
    q: Float[jax.Array, "B T h e"],
    k: Float[jax.Array, "B T g e"],
    v: Float[jax.Array, "B T g e"],
    *,
    sliding: Bool[jax.Array, ""],
    window: int,
    scale: float,
) -> Float[jax.Array, "B T h e"]:
    """Compute `masked(...)` of whole sequences by cuDNN, without storing the scores.

    On an Nvidia GPU, in bfloat16 or float16.
    """

    def attend(size: tuple[int, int] | None) -> jax.Array:
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=scale,
            is_causal=True,
            local_window_size=size,
            implementation="cudnn",
        )

    # The window covers everything; one kernel serves both kinds of layer.
    if q.shape[1] <= window:
        return attend(None)
    # A window is a constant of the kernel, and the layer's kind is none of the scan.
    return jax.lax.cond(sliding, lambda: attend((window - 1, 0)), lambda: attend(None))
