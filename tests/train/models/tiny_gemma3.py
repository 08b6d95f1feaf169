"""A tiny Gemma 3 for tests, trained in a blink."""

import jax.numpy as jnp
import numpy as np

from para_jax._adapters.params import nest
from train.models import gemma3

CONFIG = gemma3.Config(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    sliding_window=3,
    global_layers=(1,),
    query_pre_attn_scalar=7,
)
"""Unequal small sizes; sequences are longer than the window."""

IDS = np.random.default_rng(3).integers(1, 37, (2, 11)).astype(np.int32)


def params(config=CONFIG):
    """Drawn by NumPy: nothing is compiled."""
    generator = np.random.default_rng(0)

    def draw(path, shape):
        scale = 0.2 if path.endswith(("scale", "embedding")) else shape[-2] ** -0.5
        return jnp.asarray(generator.normal(scale=scale, size=shape), jnp.float32)

    found = gemma3.leaves(config)
    return nest({path: draw(path, leaf.shape) for path, leaf in found.items()})


def lora(config=CONFIG, rank=2):
    """Stacked adapters of all seven projections."""
    generator = np.random.default_rng(1)
    kernels = gemma3.leaves(config)
    result = {}
    for module in gemma3.ADAPTED:
        path = f"model/layers/{module}"
        count, m, n = kernels[f"{path}/kernel"].shape
        for name, shape in (("a", (count, m, rank)), ("b", (count, rank, n))):
            x = generator.normal(scale=0.3, size=shape)
            result[f"{path}/{name}"] = jnp.asarray(x, jnp.float32)
    return nest(result)
