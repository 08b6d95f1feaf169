"""List the names of newer mixtures: DeepSeek V3, gpt-oss, Llama 4, Qwen3-Next.

Source of the JAX names and of the differences in form: MaxText 0.2.5's
checkpoint_conversion/utils/param_mapping.py with its hooks, for Llama 4
standalone_scripts/llama4_ckpt_unscanned.py and models/llama4.py. Hugging Face:
transformers 5.24. Routers are left out, which are no modules that LoRA is put on.
"""

import dataclasses
from collections.abc import Mapping

from para_jax.names.decoders import HUGGING_FACE, Modules, Tables, layers
from para_jax.names.patterns import Module

_ROUTED = ("mlp.experts.gate_up_proj.{e}", "mlp.experts.down_proj.{e}")


def _experts(block: str, *, alternating: bool = False) -> dict[str, Module]:
    both, down = _ROUTED
    return {
        f"{block}/wi_0/{{e}}": Module(both, half=0, alternating=alternating),
        f"{block}/wi_1/{{e}}": Module(both, half=1, alternating=alternating),
        f"{block}/wo/{{e}}": Module(down),
    }


def _gated(path: str, name: str) -> Modules:
    return {
        f"{path}/wi_0": f"{name}.gate_proj",
        f"{path}/wi_1": f"{name}.up_proj",
        f"{path}/wo": f"{name}.down_proj",
    }


# The first three layers are dense, of V3, R1 and V3.1; MaxText numbers both kinds from
# 0. The rotary parts of its kernels are in transformers' order.
_DENSE_LAYERS = 3
_LATENT: Modules = {
    "self_attention/wq_a": "self_attn.q_a_proj",
    "self_attention/wq_b": "self_attn.q_b_proj",
    "self_attention/wkv_a": "self_attn.kv_a_proj_with_mqa",
    "self_attention/wkv_b": "self_attn.kv_b_proj",
    "self_attention/out": "self_attn.o_proj",
}
_DEEPSEEK = "DeepSeekMoeBlock_0"
_DEEPSEEK_DENSE: Modules = {**_LATENT, **_gated("mlp", "mlp")}
_DEEPSEEK_MOE: Modules = {
    **_LATENT,
    **_gated(f"{_DEEPSEEK}/shared_experts", "mlp.shared_experts"),
    **_experts(f"{_DEEPSEEK}/MoeBlock_0"),
}


def _deepseek(dense: str, moe: str) -> dict[str, Module]:
    first = layers(dense, HUGGING_FACE, _DEEPSEEK_DENSE, count=_DENSE_LAYERS)
    return first | layers(moe, HUGGING_FACE, _DEEPSEEK_MOE, offset=_DENSE_LAYERS)


_OSS: Modules = {
    "GptOssAttention/query": "self_attn.q_proj",
    "GptOssAttention/key": "self_attn.k_proj",
    "GptOssAttention/value": "self_attn.v_proj",
    "GptOssAttention/out": "self_attn.o_proj",
    **_experts("GptOssMlp", alternating=True),
}
_OSS_BLOCK = 2  # A local layer and a global one.


# Scout has experts in every layer, Maverick in every other one; both repeat after four.
# Its parameters are `[E, in, out]`, which PEFT reads the other way about.
_LLAMA4_BLOCK = 4
_LLAMA4: Modules = {
    "self_attention/query": "self_attn.q_proj",
    "self_attention/key": "self_attn.k_proj",
    "self_attention/value": "self_attn.v_proj",
    "self_attention/out": "self_attn.o_proj",
    **_gated("mlp", "feed_forward"),
    **_gated("Llama4MoEBlock_0/shared_experts", "feed_forward.shared_expert"),
    **{
        path: dataclasses.replace(
            module, name=module.name.replace("mlp", "feed_forward"), turned=True
        )
        for path, module in _experts("Llama4MoEBlock_0/MoeBlock_0").items()
    },
}


def _in_blocks(name: str, modules: Modules, step: int) -> dict[str, Module]:
    table: dict[str, Module] = {}
    for offset in range(step):
        path = f"decoder/layers/layers_{offset}/{{module}}/{{i}}"
        table |= layers(path, name, modules, step=step, offset=offset)
    return table


def _llama4(name: str) -> Tables:
    return {
        "maxtext": layers("decoder/layers_{i}/{module}", name, _LLAMA4),
        "maxtext-scanned": _in_blocks(name, _LLAMA4, _LLAMA4_BLOCK),
    }


# Linear attention in three of four layers, full attention in the fourth: their names
# differ, so one table holds both.
_QWEN3_NEXT: Modules = {
    "attention/in_proj_qkvz": "linear_attn.in_proj_qkvz",
    "attention/in_proj_ba": "linear_attn.in_proj_ba",
    "attention/out_proj": "linear_attn.out_proj",
    "attention/attention/query": "self_attn.q_proj",
    "attention/attention/key": "self_attn.k_proj",
    "attention/attention/value": "self_attn.v_proj",
    "attention/attention/out": "self_attn.o_proj",
    **_gated("mlp/shared_expert", "mlp.shared_expert"),
    "mlp/shared_expert_gate": "mlp.shared_expert_gate",
    **_experts("mlp/routed_experts"),
}

MIXTURES: Mapping[str, Tables] = {
    "deepseek-v3": {
        "maxtext": _deepseek(
            "decoder/dense_layers_{i}/{module}", "decoder/moe_layers_{i}/{module}"
        ),
        "maxtext-scanned": _deepseek(
            "decoder/dense_layers/{module}/{i}", "decoder/moe_layers/{module}/{i}"
        ),
    },
    "gpt-oss": {
        "maxtext": layers("decoder/layers_{i}/{module}", HUGGING_FACE, _OSS),
        "maxtext-scanned": _in_blocks(HUGGING_FACE, _OSS, _OSS_BLOCK),
    },
    "llama4": _llama4(HUGGING_FACE),
    "llama4-multimodal": _llama4(f"language_model.{HUGGING_FACE}"),
    "qwen3-next": {
        "maxtext": layers("decoder/layers_{i}/{module}", HUGGING_FACE, _QWEN3_NEXT),
    },
}
"""The tables of each mixture by ecosystem."""
