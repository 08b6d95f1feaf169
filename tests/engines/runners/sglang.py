"""Run SGLang's own loading of adapters: its config, its adapter, its buffer pool.

The pool is filled as for one device; modules that slice for several devices return
everything. The pool's `s B A` of each module is the update that the kernels would add.
"""

import pathlib
import sys

import numpy as np
import safetensors.torch
import torch

sys.path.append(str(pathlib.Path(__file__).parent))

import answers
import stand_ins

# Builds of PyPI's torchvision are for another torch than that of vLLM.
stand_ins.install("torchvision")

from sglang.srt.lora.lora import LoRAAdapter
from sglang.srt.lora.lora_config import LoRAConfig
from sglang.srt.lora.mem_pool import LoRAMemoryPool
from sglang.srt.lora.utils import get_normalized_target_modules
from sglang.srt.runtime_context import get_parallel
from sglang.version import __version__


class Base(torch.nn.Module):
    """Provide the config and the device that the pool reads from a model."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = torch.nn.Parameter(torch.zeros(1))


class Whole(torch.nn.Module):
    """A module without tensor parallelism."""

    def slice_lora_a_weights(self, weights, *_):
        return weights

    def slice_lora_b_weights(self, weights, *_):
        return weights


ONE_DEVICE = {
    "tp_size": 1,
    "tp_rank": 0,
    "attn_tp_size": 1,
    "moe_ep_size": 1,
    "moe_ep_rank": 0,
    "moe_tp_size": 1,
    "moe_tp_rank": 0,
}
MODULES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def loaded(path: str, config, max_rank: int) -> dict[str, np.ndarray]:
    """Return `s B A` of each module as the pool holds it."""
    settings = LoRAConfig(path)
    modules = get_normalized_target_modules(settings.target_modules)
    adapter = LoRAAdapter("one", settings, config, None, None)
    file = pathlib.Path(path) / "adapter_model.safetensors"
    adapter.initialize_weights_from_tensors(safetensors.torch.load_file(file))
    wanted = set(MODULES) | (modules & {"embed_tokens", "lm_head"})
    pool = LoRAMemoryPool(
        config, 1, torch.float32, max_rank, wanted, Base(config), "lru", 0
    )
    if not pool.can_support(settings):
        raise ValueError("can_support: False")
    layers = [{x: Whole() for x in MODULES} for _ in range(config.num_hidden_layers)]
    whole = {x: Whole() for x in ("embed_tokens", "lm_head") if x in wanted}
    pool.load_lora_weight_to_buffer(
        "one", 0, adapter, layers, whole.get("embed_tokens"), whole.get("lm_head")
    )
    return products(pool, config, settings.r, adapter.scaling)


def products(pool, config, rank: int, scale: float) -> dict[str, np.ndarray]:
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    rows = {
        "qkv_proj": {
            "self_attn.q_proj": heads * config.head_dim,
            "self_attn.k_proj": kv * config.head_dim,
            "self_attn.v_proj": kv * config.head_dim,
        },
        "o_proj": {"self_attn.o_proj": config.hidden_size},
        "gate_up_proj": {
            "mlp.gate_proj": config.intermediate_size,
            "mlp.up_proj": config.intermediate_size,
        },
        "down_proj": {"mlp.down_proj": config.hidden_size},
    }
    found = {}
    for layer in range(config.num_hidden_layers):
        for module, parts in rows.items():
            a = pool.A_buffer[module][layer][0].double().numpy()
            b = pool.B_buffer[module][layer][0].double().numpy()
            start = 0
            for place, (name, size) in enumerate(parts.items()):
                down = a[place * rank : (place + 1) * rank]
                up = b[start : start + size, :rank]
                found[f"model.layers.{layer}.{name}"] = scale * up @ down
                start += size
    # Either pair has buffers of both names, of which it fills its own.
    if "embed_tokens" in pool.embedding_A_buffer:
        buffers = pool.embedding_A_buffer, pool.embedding_B_buffer
        a, b = (x["embed_tokens"][0].double().numpy() for x in buffers)
        found["model.embed_tokens"] = scale * (b @ a).T  # As its weight is.
    if "lm_head" in pool.lm_head_A_buffer:
        buffers = pool.lm_head_A_buffer, pool.lm_head_B_buffer
        a, b = (x["lm_head"][0].double().numpy() for x in buffers)
        found["lm_head"] = scale * b @ a
    return found


if __name__ == "__main__":
    get_parallel().override_permanently(**ONE_DEVICE)
    answers.write(loaded, __version__)
