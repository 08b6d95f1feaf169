"""List the names of keras-hub's backbones, by path and by number of the layer.

`keras` are the paths of a living model's layers. `keras-file` are the numbers in a
`*.lora.h5`: keras-hub counts every layer with weights, in a fixed order for each
architecture. Projections to heads have the heads first in Gemma's kernels, `[n, d, h]`,
and second in all others', `[d, n, h]`. No kernel differs otherwise: keras-hub's
converters of transformers' checkpoints reshape and transpose alone.

The vision tower of Gemma 3 comes before its decoder, and then the numbers in a file are
others: those of the text model are here.

Source: keras_hub/src/models/*/*_backbone.py with their layers, and
keras_hub/src/utils/transformers/convert_*.py of keras-hub 0.32.0. Hugging Face:
transformers 5.23.
"""

from collections.abc import Mapping
from typing import Literal

from para_jax.names.patterns import Module, Table

_HUGGING_FACE = "model.layers.{i}."
_ENCODER = "{base}.encoder.layer.{i}."
_DECODER = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
}
_GEMMA = {
    "ffw_linear": "mlp.down_proj",
    "ffw_gating_2": "mlp.up_proj",
    "ffw_gating": "mlp.gate_proj",
}
_LLAMA = {
    "feedforward_output_dense": "mlp.down_proj",
    "feedforward_gate_dense": "mlp.gate_proj",
    "feedforward_intermediate_dense": "mlp.up_proj",
}
_BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
}
_BERT_MLP = {
    "feedforward_output_dense": "output.dense",
    "feedforward_intermediate_dense": "intermediate.dense",
}


def _tables(
    layer: str,
    base: str,
    modules: Mapping[str, Module],
    step: int,
    numbers: tuple[int, ...],
) -> dict[str, Table]:
    """Return the tables of living models and of files.

    Args:
      layer: The path of a layer.
      base: Its name in Hugging Face.
      modules: The modules in it, by path.
      step: How many layers with weights one of the model's layers has.
      numbers: The numbers of the modules in the first one.
    """
    named = {
        path: Module(f"{base}{x.name}", heads=x.heads) for path, x in modules.items()
    }
    files = {
        f"lora/{{{step}i+{first}}}": x
        for first, x in zip(numbers, named.values(), strict=True)
    }
    return {
        "keras": {f"{layer}/{path}": x for path, x in named.items()},
        "keras-file": files,
    }


def _modules(
    mlp: Mapping[str, str],
    attention: str,
    projections: Mapping[str, str],
    heads: Literal["nd", "dn"],
) -> dict[str, Module]:
    """Return the modules of a layer in the order in which keras-hub counts them."""
    found = {path: Module(name) for path, name in mlp.items()}
    for path in ("attention_output", "value", "key", "query"):
        axes = "nh" if path == "attention_output" else heads
        found[f"{attention}/{path}"] = Module(projections[path], heads=axes)
    return found


def _gemma(step: int, *numbers: int) -> dict[str, Table]:
    modules = _modules(_GEMMA, "attention", _DECODER, "nd")
    return _tables("decoder_block_{i}", _HUGGING_FACE, modules, step, numbers)


def _llama(step: int, *numbers: int) -> dict[str, Table]:
    modules = _modules(_LLAMA, "self_attention", _DECODER, "dn")
    return _tables("transformer_layer_{i}", _HUGGING_FACE, modules, step, numbers)


def _bert(base: str) -> dict[str, Table]:
    modules = _modules(_BERT_MLP, "self_attention_layer", _BERT, "dn")
    name = _ENCODER.replace("{base}", base)
    numbers = (5, 6, 10, 11, 12, 13)
    return _tables("transformer_layer_{i}", name, modules, 10, numbers)


_LLAMAS = _llama(11, 3, 4, 5, 8, 9, 10, 11)

KERAS: Mapping[str, Mapping[str, Table]] = {
    "gemma": _gemma(11, 2, 3, 4, 7, 8, 9, 10),
    "gemma2": _gemma(13, 2, 3, 4, 8, 9, 10, 11),
    "gemma3": _gemma(15, 2, 3, 4, 8, 11, 12, 13),
    **dict.fromkeys(("llama3", "llama3.1", "mistral", "qwen2.5"), _LLAMAS),
    "qwen3": _llama(13, 3, 4, 5, 8, 9, 11, 13),
    "bert": _bert("bert"),
    "roberta": _bert("roberta"),
}
"""The tables of each model by ecosystem, `keras` and `keras-file`."""
