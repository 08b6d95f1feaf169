"""Small grey pictures as arrays on the device. Traceable under `jit`.

Axis letters: `N` pictures, `P` pixels, `B` pictures a batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from train.data.batch import Batch


class Pictures(NamedTuple):
    """Pictures and their classes. A pytree, so that a compiled program can index it."""

    images: UInt8[jax.Array | np.ndarray, "N P P"]
    labels: Int[jax.Array | np.ndarray, "N"]

    def batch(self, rows: Int[jax.Array | np.ndarray, "B"]) -> Batch:
        """Return some of the pictures as inputs of the model."""
        images, labels = (jnp.asarray(x)[rows] for x in self)
        return Batch(as_input(images.astype(jnp.float32) / 255), labels)


def as_input(images: Float[jax.Array, "B P P"]) -> Float[jax.Array, "B P P 3"]:
    """Convert grey pictures, from 0 to 1, to SigLIP's inputs.

    Three channels, from -1 to 1.
    """
    # SigLIP expects three channels in -1 to 1.
    return jnp.repeat(2 * images[..., None] - 1, 3, axis=-1)
