"""List the names of the encoders: BERT, ViT, SigLIP, DINOv3, Gemma 3's vision tower.

Sources of the JAX names: the Flax classes of transformers 4 (with the names of their
PyTorch twins in that version); big_vision's models/vit.py and two-tower params, as
transformers' convert_siglip_to_hf.py reads them; gemma/multimodal/vision_utils.py
(gemma 3.3); tunix/models/gemma3/vision.py (tunix 0.1.7); MaxText's param_mapping.py;
bonsai/models/dinov3 (bonsai at 3628425). Hugging Face: transformers 5.24, which dropped
a level from the paths of ViT and of Gemma 3's tower.
"""

from collections.abc import Mapping

from para_jax.names.decoders import MULTIMODAL, Modules, Tables, gemma3, layers
from para_jax.names.patterns import Table

_BERT: Modules = {
    "attention/self/query": "attention.self.query",
    "attention/self/key": "attention.self.key",
    "attention/self/value": "attention.self.value",
    "attention/output/dense": "attention.output.dense",
    "intermediate/dense": "intermediate.dense",
    "output/dense": "output.dense",
}
# The Flax classes have the names of transformers 4: transformers 5 dropped them.
_FLAX_VIT: Modules = {
    "attention/attention/query": "attention.q_proj",
    "attention/attention/key": "attention.k_proj",
    "attention/attention/value": "attention.v_proj",
    "attention/output/dense": "attention.o_proj",
    "intermediate/dense": "mlp.fc1",
    "output/dense": "mlp.fc2",
}
_VIT: Modules = {
    "MultiHeadDotProductAttention_0/query": "attention.q_proj",
    "MultiHeadDotProductAttention_0/key": "attention.k_proj",
    "MultiHeadDotProductAttention_0/value": "attention.v_proj",
    "MultiHeadDotProductAttention_0/out": "attention.o_proj",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
}
_SIGLIP_ATTENTION: Modules = {
    "MultiHeadDotProductAttention_0/query": "self_attn.q_proj",
    "MultiHeadDotProductAttention_0/key": "self_attn.k_proj",
    "MultiHeadDotProductAttention_0/value": "self_attn.v_proj",
    "MultiHeadDotProductAttention_0/out": "self_attn.out_proj",
}
_SIGLIP: Modules = {
    **_SIGLIP_ATTENTION,
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
}
_MAXTEXT_SIGLIP: Modules = {
    **_SIGLIP_ATTENTION,
    "MlpBlockViT_0/Dense_0": "mlp.fc1",
    "MlpBlockViT_0/Dense_1": "mlp.fc2",
}
_TUNIX_SIGLIP: Modules = {
    "attn/query_proj": "self_attn.q_proj",
    "attn/key_proj": "self_attn.k_proj",
    "attn/value_proj": "self_attn.v_proj",
    "attn/out_proj": "self_attn.out_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
# Gated in the largest model alone.
_BONSAI_DINOV3: Modules = {
    "attention/q_proj": "attention.q_proj",
    "attention/k_proj": "attention.k_proj",
    "attention/v_proj": "attention.v_proj",
    "attention/o_proj": "attention.o_proj",
    "mlp/gate_proj": "mlp.gate_proj",
    "mlp/up_proj": "mlp.up_proj",
    "mlp/down_proj": "mlp.down_proj",
}
_IMAGES = "vision_model.encoder.layers.{i}.{module}"
_TEXTS = "text_model.encoder.layers.{i}.{module}"
_TOWER = "model.vision_tower.encoder.layers.{i}.{module}"


def _flax(base: str) -> Tables:
    path, name = f"{base}/encoder/layer/{{i}}/", f"{base}.encoder.layer.{{i}}."
    return {"flax": layers(path + "{module}", name + "{module}", _BERT)}


def _with_tower(tables: Tables) -> dict[str, Table]:
    """Return Gemma 3's tables with those of its vision tower."""
    siglip = "vision_encoder/siglip_encoder"
    maxtext = "vision_encoder/Gemma3VisionEncoderLayer_0"
    towers: Mapping[str, tuple[str, Modules]] = {
        "tunix": (f"{siglip}/transformer/blocks/{{i}}/{{module}}", _TUNIX_SIGLIP),
        "gemma": (f"{siglip}/Transformer/encoderblock_{{i}}/{{module}}", _SIGLIP),
        "maxtext": (
            f"{maxtext}/Transformer/encoderblock_{{i}}/{{module}}",
            _MAXTEXT_SIGLIP,
        ),
    }
    result: dict[str, Table] = {}
    for ecosystem, table in tables.items():
        # `tunix-fused` and the like differ in the decoder alone: they share a tower.
        path, modules = towers[ecosystem.partition("-")[0]]
        result[ecosystem] = {**table, **layers(path, _TOWER, modules)}
    return result


_TWO_TOWERS: Tables = {
    "big-vision": {
        **layers("img/Transformer/encoderblock_{i}/{module}", _IMAGES, _SIGLIP),
        **layers("txt/Encoder_0/encoderblock_{i}/{module}", _TEXTS, _SIGLIP),
    },
    "big-vision-scanned": {
        **layers("img/Transformer/encoderblock/{module}/{i}", _IMAGES, _SIGLIP),
        **layers("txt/Encoder_0/encoderblock/{module}/{i}", _TEXTS, _SIGLIP),
    },
}
ENCODERS: Mapping[str, Tables] = {
    "bert": _flax("bert"),
    "roberta": _flax("roberta"),
    "vit": {
        "flax": layers(
            "vit/encoder/layer/{i}/{module}", "vit.layers.{i}.{module}", _FLAX_VIT
        ),
        "big-vision": layers(
            "Transformer/encoderblock_{i}/{module}", "vit.layers.{i}.{module}", _VIT
        ),
        "big-vision-scanned": layers(
            "Transformer/encoderblock/{module}/{i}", "vit.layers.{i}.{module}", _VIT
        ),
    },
    "siglip": _TWO_TOWERS,
    "siglip2": _TWO_TOWERS,
    "dinov3": {
        "bonsai": layers(
            "layer/{i}/{module}", "model.layer.{i}.{module}", _BONSAI_DINOV3
        )
    },
    "gemma3-multimodal": _with_tower(gemma3(MULTIMODAL)),
}
"""The tables of each encoder, and of each model with one, by ecosystem."""
