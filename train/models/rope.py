"""Rotary position embeddings.

J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
The two halves of a head are rotated against each other, as transformers does.

Axis letters: `B` sequences, `T` tokens, `h` heads, `e` their width. Traceable under
`jit`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int


class Bounds(NamedTuple):
    """The bounds of Llama 3's scaling, in turns within the length trained on.

    Attributes:
      low: Slower coordinates are divided by the whole factor.
      high: Faster ones are not divided.
      length: The number of positions of that length.
    """

    low: float
    high: float
    length: float


def frequencies(
    width: int, base: float, *, factor: float = 1.0
) -> Float[np.ndarray, " half"]:
    """Return the angle per position of each pair of coordinates, `base ** (-2i / e)`.

    Args:
      width: The width `e` of a head.
      base: The base of the wavelengths, `rope_theta`.
      factor: The divisor of positions: transformers' linear scaling.
    """
    exponents = np.arange(0, width, 2) / width
    return (base**-exponents / factor).astype(np.float32)


def stretched(
    angles: Float[np.ndarray, " half"], factor: float, bounds: Bounds
) -> Float[np.ndarray, " half"]:
    """Divide the angles of slow coordinates, as Llama 3.1 does.

    It is the `rope_type` "llama3" of transformers.

    Args:
      angles: From `frequencies`.
      factor: The divisor of the slowest.
      bounds: The coordinates that it concerns.
    """
    turns = angles.astype(np.float64) * bounds.length / (2 * np.pi)
    # Between the bounds, the two are mixed in proportion.
    whole = np.clip((turns - bounds.low) / (bounds.high - bounds.low), 0, 1)
    return (angles * (whole + (1 - whole) / factor)).astype(np.float32)


def rotate(
    x: Float[jax.Array, "B T h e"],
    positions: Int[jax.Array, "#B T"],
    angles: Float[jax.Array, " half"],
) -> Float[jax.Array, "B T h e"]:
    """Rotate queries or keys by their positions, in float32, and cast back."""
    # In float32: bfloat16 has too few digits for large positions.
    turn = positions[:, :, None, None].astype(jnp.float32) * angles[None, None, None, :]
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    # Halves, not neighbours: transformers' order of the coordinates.
    one, two = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)
    return turned.astype(x.dtype)
