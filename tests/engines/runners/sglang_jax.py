"""Run SGLang-JAX's own config and buffer pool, on one CPU device."""

import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

sys.path.append(str(pathlib.Path(__file__).parent))

import answers

sys.path.insert(0, str(answers.checkout() / "python"))

from sgl_jax.srt.lora.lora_config import LoRAConfig
from sgl_jax.srt.lora.lora_memory_pool import LoRAMemoryPool
from sgl_jax.srt.lora.utils import get_normalized_target_modules


def adapter(path: str, layers: int) -> types.SimpleNamespace:
    """Return an adapter's tensors by layer, as its `LoRAAdapter` holds them."""
    file = pathlib.Path(path) / "adapter_model.safetensors"
    held = [types.SimpleNamespace(weights={}) for _ in range(layers)]
    for name, x in safetensors.numpy.load_file(file).items():
        if match := re.search(r"layers\.(\d+)\.", name):
            held[int(match[1])].weights[name] = jnp.asarray(x)
    return types.SimpleNamespace(layers=held)


def loaded(path: str, config, max_rank: int) -> dict[str, np.ndarray]:
    """Return `s B A` of each module as the pool holds it."""
    settings = LoRAConfig(path)
    if settings.r > max_rank:
        raise ValueError(f"r {settings.r} is above {max_rank}")
    modules = get_normalized_target_modules(settings.target_modules)
    mesh = jax.make_mesh((1,), ("tensor",))
    pool = LoRAMemoryPool(
        max_loras_per_batch=2,
        max_lora_rank=max_rank,
        num_layers=config.num_hidden_layers,
        target_modules=modules,
        mesh=mesh,
        dtype=jnp.float32,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
    )
    pool.init_buffers()
    held = adapter(path, config.num_hidden_layers)
    pool.load_lora_weight_to_buffer("one", 1, held)
    scale, found = settings.lora_alpha / settings.r, {}
    for name in modules:
        owner = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        for layer in range(config.num_hidden_layers):
            a = np.asarray(pool.get_array(name, layer, True)[1], np.float64)
            b = np.asarray(pool.get_array(name, layer, False)[1], np.float64)
            found[f"model.layers.{layer}.{owner}.{name}"] = scale * b @ a
    return found


if __name__ == "__main__":
    answers.write(loaded, answers.commit())
