"""List the names of Gemma 4: the text model, alone and in the one with images.

Sources of the JAX names: tunix/models/gemma4/model.py and params_safetensors.py (tunix
0.1.7); MaxText 0.2.5's checkpoint_conversion/utils/param_mapping.py with its hooks.
Hugging Face: transformers 5.24. Not here: MaxText's scan, whose layers lie in two
levels, and tunix's experts, which its LoRA does not reach.
"""

import dataclasses
from collections.abc import Mapping

from para_jax.names.decoders import (
    HUGGING_FACE,
    MAXTEXT_ATTENTION,
    MULTIMODAL,
    TUNIX_MLP,
    Modules,
    Tables,
    layers,
)
from para_jax.names.patterns import Module, Table

# Every sixth layer is global. In 26B-A4B and 31B its values are its keys.
_CYCLE = 6
_GLOBAL = (5,)
_LOCAL = (0, 1, 2, 3, 4)

_QUERY: Modules = {
    "attn/q_einsum": "self_attn.q_proj",
    "attn/attn_vec_einsum": "self_attn.o_proj",
}
_TUNIX: Modules = {
    **_QUERY,
    "attn/kv_einsum/k": "self_attn.k_proj",
    "attn/kv_einsum/v": "self_attn.v_proj",
    **TUNIX_MLP,
    "per_layer_input_gate": "per_layer_input_gate",
    "per_layer_projection": "per_layer_projection",
}
_TUNIX_SHARED: Modules = {
    **_QUERY,
    "attn/kv_einsum/k": Module("self_attn.k_proj", cycle=_CYCLE, places=_LOCAL),
    "attn/kv_einsum/v": Module("self_attn.v_proj", cycle=_CYCLE, places=_LOCAL),
    "attn/k_einsum": Module("self_attn.k_proj", cycle=_CYCLE, places=_GLOBAL),
    **TUNIX_MLP,
}
_MAXTEXT: Modules = {
    **MAXTEXT_ATTENTION,
    "mlp/wi_0": "mlp.gate_proj",
    "mlp/wi_1": "mlp.up_proj",
    "mlp/wo": "mlp.down_proj",
    "per_layer_input_gate": "per_layer_input_gate",
    "per_layer_projection": "per_layer_projection",
}
_BLOCK = "mlp/moe_block"
_MAXTEXT_MOE: Modules = {
    **MAXTEXT_ATTENTION,
    f"{_BLOCK}/shared_experts/wi_0": "mlp.gate_proj",
    f"{_BLOCK}/shared_experts/wi_1": "mlp.up_proj",
    f"{_BLOCK}/shared_experts/wo": "mlp.down_proj",
    f"{_BLOCK}/MoeBlock_0/gate": "router.proj",
    f"{_BLOCK}/MoeBlock_0/wi_0/{{e}}": Module("experts.gate_up_proj.{e}", half=0),
    f"{_BLOCK}/MoeBlock_0/wi_1/{{e}}": Module("experts.gate_up_proj.{e}", half=1),
    f"{_BLOCK}/MoeBlock_0/wo/{{e}}": "experts.down_proj.{e}",
}
_TOWER: Modules = {
    "attention/query": "self_attn.q_proj.linear",
    "attention/key": "self_attn.k_proj.linear",
    "attention/value": "self_attn.v_proj.linear",
    "attention/out": "self_attn.o_proj.linear",
    "mlp/wi_0": "mlp.gate_proj.linear",
    "mlp/wi_1": "mlp.up_proj.linear",
    "mlp/wo": "mlp.down_proj.linear",
}


def _text(name: str) -> dict[str, Table]:
    base = name.partition(".layers")[0]
    # The projection to the inputs of all layers, of E2B and E4B.
    inputs = Module(f"{base}.per_layer_model_projection")
    divided = dataclasses.replace(inputs, divided=True)
    maxtext = "decoder/layers_{i}/{module}"
    return {
        "tunix": {
            **layers("layers/{i}/{module}", name, _TUNIX),
            "embedder/per_layer_model_projection": divided,
        },
        "tunix-shared-values": layers("layers/{i}/{module}", name, _TUNIX_SHARED),
        "maxtext": {
            **layers(maxtext, name, _MAXTEXT),
            "decoder/per_layer_embedder/per_layer_model_projection": inputs,
        },
        "maxtext-moe": layers(maxtext, name, _MAXTEXT_MOE),
    }


def _with_tower(tables: Tables) -> dict[str, Table]:
    tower = layers(
        "vision_encoder/Gemma4VisionEncoderLayer_0/layer_{i}/{module}",
        "model.vision_tower.encoder.layers.{i}.{module}",
        _TOWER,
    )
    return {
        ecosystem: {**table, **tower} if ecosystem.startswith("maxtext") else table
        for ecosystem, table in tables.items()
    }


GEMMA4: Mapping[str, Tables] = {
    "gemma4": _text(HUGGING_FACE),
    "gemma4-multimodal": _with_tower(_text(MULTIMODAL)),
}
"""The tables of Gemma 4 by ecosystem."""
