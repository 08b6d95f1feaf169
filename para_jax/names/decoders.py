"""List the names of the decoders: Llama, Mistral, Qwen, Gemma, Mixtral.

Sources of the JAX names and of the differences in form: tunix/models/*/model.py
and params*.py (tunix 0.1.7); gemma/gm/nn/_modules.py (gemma 3.3); MaxText's
checkpoint_conversion/utils/param_mapping.py with its hooks, levanter/models/{llama,
mistral,qwen}.py (marin-levanter 0.2.20), for Mistral
standalone_scripts/llama_mistral_mixtral_orbax_to_hf.py, for Llama's two rotary forms
utils/max_utils.py (`unpermute_from_match_maxtext_rope`). Hugging Face: transformers
5.23.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from para_jax.names.patterns import Module, Table

Modules = Mapping[str, str | Module]
Tables = Mapping[str, Table]

HUGGING_FACE = "model.layers.{i}.{module}"
MULTIMODAL = "model.language_model.layers.{i}.{module}"

_FLAX_ATTENTION: Modules = {
    "self_attn/q_proj": "self_attn.q_proj",
    "self_attn/k_proj": "self_attn.k_proj",
    "self_attn/v_proj": "self_attn.v_proj",
    "self_attn/o_proj": "self_attn.o_proj",
}
_FLAX: Modules = {
    **_FLAX_ATTENTION,
    "mlp/gate_proj": "mlp.gate_proj",
    "mlp/up_proj": "mlp.up_proj",
    "mlp/down_proj": "mlp.down_proj",
}
_TUNIX_ATTENTION: Modules = {
    "attn/q_proj": "self_attn.q_proj",
    "attn/k_proj": "self_attn.k_proj",
    "attn/v_proj": "self_attn.v_proj",
    "attn/o_proj": "self_attn.o_proj",
}
TUNIX_MLP: Modules = {
    "mlp/gate_proj": "mlp.gate_proj",
    "mlp/up_proj": "mlp.up_proj",
    "mlp/down_proj": "mlp.down_proj",
}
# One einsum holds keys and values, or gate and up: `layouts` makes an adapter of each
# part, named below the einsum.
_GEMMA_ATTENTION: Modules = {
    "attn/q_einsum": "self_attn.q_proj",
    "attn/kv_einsum/k": "self_attn.k_proj",
    "attn/kv_einsum/v": "self_attn.v_proj",
    "attn/attn_vec_einsum": "self_attn.o_proj",
}
# gemma fuses all three projections if keys have as many heads as queries.
_GEMMA_FUSED: Modules = {
    "attn/qkv_einsum/q": "self_attn.q_proj",
    "attn/qkv_einsum/k": "self_attn.k_proj",
    "attn/qkv_einsum/v": "self_attn.v_proj",
    "attn/attn_vec_einsum": "self_attn.o_proj",
}
_GEMMA_MLP: Modules = {
    "mlp/gating_einsum/gate": "mlp.gate_proj",
    "mlp/gating_einsum/up": "mlp.up_proj",
    "mlp/linear": "mlp.down_proj",
}
MAXTEXT_ATTENTION: Modules = {
    "self_attention/query": "self_attn.q_proj",
    "self_attention/key": "self_attn.k_proj",
    "self_attention/value": "self_attn.v_proj",
    "self_attention/out": "self_attn.o_proj",
}
# MaxText numbers the two input projections of a gated MLP; the activation is on `wi_0`.
_MAXTEXT: Modules = {
    **MAXTEXT_ATTENTION,
    "mlp/wi_0": "mlp.gate_proj",
    "mlp/wi_1": "mlp.up_proj",
    "mlp/wo": "mlp.down_proj",
}
# MaxText folds the `1 / sqrt(head_dim)` of the attention into the query's kernel.
_SCALED: Modules = {
    "self_attention/query": Module("self_attn.q_proj", scaled=True),
}
# For Llama 3.1, MaxText also keeps the rotary pairs side by side.
_LLAMA31: Modules = {
    "self_attention/query": Module("self_attn.q_proj", scaled=True, interleaved=True),
    "self_attention/key": Module("self_attn.k_proj", interleaved=True),
}
# One parameter of transformers holds all experts, the outputs of gate before those of
# up.
_EXPERTS: tuple[Module, Module, Module] = (
    Module("mlp.experts.gate_up_proj.{e}", half=0),
    Module("mlp.experts.gate_up_proj.{e}", half=1),
    Module("mlp.experts.down_proj.{e}"),
)
_GEMMA3_BLOCK = 6  # Five local layers and a global one.


def layers(
    path: str,
    name: str,
    modules: Modules,
    *,
    step: int = 1,
    offset: int = 0,
    count: int | None = None,
    part: Literal["all", "blocks", "rest"] = "all",
) -> dict[str, Module]:
    """Return the table of the modules of every layer.

    Args:
      path: The JAX pattern of a layer, with `{module}` for the path within.
      name: The same for Hugging Face.
      modules: The modules within a layer.
      step: See `Module`.
      offset: See `Module`.
      count: See `Module`.
      part: See `Module`.
    """
    table = {}
    # Not `str.format`: the patterns keep their `{i}` and `{e}`.
    for inside, module in modules.items():
        x = module if isinstance(module, Module) else Module(module)
        table[path.replace("{module}", inside)] = dataclasses.replace(
            x,
            name=name.replace("{module}", x.name),
            step=step,
            offset=offset,
            count=count,
            part=part,
        )
    return table


def _flax(modules: Modules) -> Table:
    return layers("model/layers/{i}/{module}", HUGGING_FACE, modules)


def _tunix(modules: Modules, name: str = HUGGING_FACE) -> Table:
    return layers("layers/{i}/{module}", name, modules)


def _gemma(modules: Modules, name: str = HUGGING_FACE) -> Table:
    return layers("layer_{i}/{module}", name, modules)


def _maxtext(modules: Modules) -> Table:
    return layers("decoder/layers_{i}/{module}", HUGGING_FACE, modules)


def _scanned(modules: Modules) -> Table:
    return layers("decoder/layers/{module}/{i}", HUGGING_FACE, modules)


def _levanter() -> dict[str, Table]:
    """Return levanter's two tables: layers in haliax's `Stacked`, and in `BlockSeq`."""
    apart = "transformer/layers/blocks/{i}/{module}"
    return {
        "levanter": layers("transformer/layers/{module}/{i}", HUGGING_FACE, _FLAX),
        "levanter-apart": layers(apart, HUGGING_FACE, _FLAX),
    }


def _stacked(gate: str, up: str, down: str) -> Modules:
    return dict(zip((gate, up, down), _EXPERTS, strict=True))


def _moe(block: str, attention: Modules) -> dict[str, Table]:
    """Return MaxText's two tables of a model with experts, without and with a scan."""
    paths = [f"{block}/{weight}/{{e}}" for weight in ("wi_0", "wi_1", "wo")]
    modules = {**attention, **_stacked(*paths)}
    return {"maxtext": _maxtext(modules), "maxtext-scanned": _scanned(modules)}


def _dense(modules: Modules, suffix: str = "") -> dict[str, Table]:
    return {
        f"maxtext{suffix}": _maxtext(modules),
        f"maxtext{suffix}-scanned": _scanned(modules),
    }


def _gemma2_block(path: str) -> Table:
    """Return the table of MaxText's blocks of a local and a global layer."""
    table: dict[str, Module] = {}
    for offset, kind in enumerate(("local", "global")):
        modules = {
            key.replace("/", f"_{kind}/", 1): module
            for key, module in {**_MAXTEXT, **_SCALED}.items()
        }
        table |= layers(path, HUGGING_FACE, modules, step=2, offset=offset)
    return table


def _gemma3_scanned(name: str) -> Table:
    # MaxText scans whole blocks; the layers after the last block are not scanned.
    table: dict[str, Module] = {}
    for offset in range(_GEMMA3_BLOCK):
        path = f"decoder/layers/layers_{offset}/{{module}}/{{i}}"
        table |= layers(
            path, name, _MAXTEXT, step=_GEMMA3_BLOCK, offset=offset, part="blocks"
        )
    path = "decoder/layers_remainder/layers_{i}/{module}"
    return table | layers(path, name, _MAXTEXT, step=_GEMMA3_BLOCK, part="rest")


def _gemmas(name: str) -> dict[str, Table]:
    """Return the tables of tunix and gemma, which share the names of all versions."""
    return {
        "tunix": _tunix({**_GEMMA_ATTENTION, **TUNIX_MLP}, name),
        "tunix-fused": _tunix({**_GEMMA_FUSED, **TUNIX_MLP}, name),
        "gemma": _gemma({**_GEMMA_ATTENTION, **_GEMMA_MLP}, name),
        "gemma-fused": _gemma({**_GEMMA_FUSED, **_GEMMA_MLP}, name),
    }


def gemma3(name: str) -> dict[str, Table]:
    """Return the tables of Gemma 3's language model.

    Args:
      name: The pattern of its layers, `HUGGING_FACE` or `MULTIMODAL`.
    """
    return {
        **_gemmas(name),
        "maxtext": layers("decoder/layers_{i}/{module}", name, _MAXTEXT),
        "maxtext-scanned": _gemma3_scanned(name),
    }


_LLAMA_OR_QWEN: Tables = {
    "flax": _flax(_FLAX),
    "tunix": _tunix({**_TUNIX_ATTENTION, **TUNIX_MLP}),
    **_levanter(),
}
DECODERS: Mapping[str, Tables] = {
    # Llama 3.1 and later are often called Llama 3, so both forms are here; `ecosystem`
    # decides between them.
    "llama3": {
        **_LLAMA_OR_QWEN,
        **_dense({**_MAXTEXT, **_SCALED}),
        **_dense({**_MAXTEXT, **_LLAMA31}, "-llama3.1"),
    },
    "llama3.1": {**_LLAMA_OR_QWEN, **_dense({**_MAXTEXT, **_LLAMA31})},
    "mistral": {
        "flax": _flax(_FLAX),
        **_dense({**_MAXTEXT, **_SCALED}),
        **_levanter(),
    },
    "qwen2.5": {**_LLAMA_OR_QWEN, **_dense(_MAXTEXT)},
    "qwen3": {**_LLAMA_OR_QWEN, **_dense(_MAXTEXT)},
    "gemma2": {
        "flax": _flax(_FLAX),
        **_gemmas(HUGGING_FACE),
        "maxtext": _gemma2_block("decoder/layers_{i}/{module}"),
        "maxtext-scanned": _gemma2_block("decoder/layers/{module}/{i}"),
    },
    "gemma3": {"flax": _flax(_FLAX), **gemma3(HUGGING_FACE)},
    "mixtral": _moe("MoeBlock_0", {**MAXTEXT_ATTENTION, **_SCALED}),
    "qwen3-moe": {
        "tunix": _tunix(
            {
                **_TUNIX_ATTENTION,
                **_stacked("mlp/gate_proj/{e}", "mlp/up_proj/{e}", "mlp/down_proj/{e}"),
            }
        ),
        **_moe("moe_block", MAXTEXT_ATTENTION),
    },
}
"""The tables of each decoder by ecosystem."""
