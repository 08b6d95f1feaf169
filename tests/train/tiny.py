"""A tiny BERT for tests, trained in a blink."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from train.models import bert

_CONFIG = bert.Config(
    vocab_size=11,
    hidden_size=6,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=10,
    max_position_embeddings=8,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
)
"""Unequal small sizes: a transposition fails."""


def config(**changes):
    return dataclasses.replace(_CONFIG, **changes)


def params(model, generator, *, scale=0.3):
    """Return a model's parameters, drawn by NumPy: nothing is compiled."""
    tokens = bert.Tokens(np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return jax.tree.map(
        lambda x: jnp.asarray(generator.normal(scale=scale, size=x.shape), x.dtype),
        shapes,
    )
