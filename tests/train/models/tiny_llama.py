"""A tiny Llama for tests, trained in a blink."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from para_jax._adapters.params import nest
from train.models import llama
from train.models.rope import Bounds

CONFIG = llama.Config(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    rope_theta=500.0,
    rms_norm_eps=1e-5,
)
"""Unequal small sizes."""

TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)
LINEAR = dataclasses.replace(CONFIG, rope_factor=4.0)
# Its three coordinates turn 2.5, 0.7 and 0.2 times in the length.
LLAMA3 = dataclasses.replace(
    CONFIG,
    head_dim=6,
    rope_theta=50.0,
    rope_factor=8.0,
    rope_bounds=Bounds(low=0.3, high=1.2, length=16.0),
)

IDS = np.random.default_rng(3).integers(1, 37, (2, 11)).astype(np.int32)


def params(config=CONFIG):
    """Drawn by NumPy: nothing is compiled."""
    generator = np.random.default_rng(0)

    def draw(path, shape):
        if path.endswith("scale"):
            return jnp.asarray(generator.normal(1, 0.3, shape), jnp.float32)
        scale = 0.4 if path.endswith("embedding") else shape[-2] ** -0.5
        return jnp.asarray(generator.normal(scale=scale, size=shape), jnp.float32)

    found = llama.leaves(config)
    return nest({path: draw(path, leaf.shape) for path, leaf in found.items()})
