"""A model's configuration, from its GGUF file.

A file's metadata has other names than transformers, and leaves out what llama.cpp has
in its code: that is added here. Runs on the host.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from train.models import configuration, gguf_file, gguf_weights
from train.models.gguf_file import Header

_COMMON = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# Of Gemma 3, alone 27B divides by the width of a head as it would be without an own.
_LAYERS_OF_27B = 62


def read(file: pathlib.Path) -> dict[str, Any]:
    """Read the values of a model's configuration, under the names of transformers.

    Raises:
      ValueError: if the file is damaged, of an unknown architecture, or lacks a value.
    """
    header = gguf_file.read_header(file)
    kind = gguf_weights.architecture(file, header)
    found = {
        key.removeprefix(f"{kind}."): value
        for key, value in header.metadata.items()
        if key.startswith(f"{kind}.")
    }
    values = _common(file, header, found)
    own = {"llama": _llama, "gemma3": _gemma3}[kind]
    return values | _rotations(file, header, found) | own(found, values)


def _common(
    file: pathlib.Path, header: Header, found: Mapping[str, Any]
) -> dict[str, Any]:
    missing = [key for key in _COMMON if key not in found]
    missing += [x for x in ("token_embd.weight",) if x not in header.tensors]
    if missing:
        raise ValueError(
            f"'{file}' lacks {missing}. Convert the model again, or put its "
            f"{configuration.FILE} beside the file."
        )
    values = {name: found[key] for key, name in _COMMON.items()}
    heads = values["num_attention_heads"]
    return values | {
        # The metadata need not have it, and may count fewer than there are rows.
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "num_key_value_heads": found.get("attention.head_count_kv", heads),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "eos_token_id": header.metadata.get("tokenizer.ggml.eos_token_id"),
    }


def _rotations(
    file: pathlib.Path, header: Header, found: Mapping[str, Any]
) -> dict[str, Any]:
    values = {"rope_theta": found.get("rope.freq_base", 10_000.0)}
    scaling = found.get("rope.scaling.type", "none")
    if gguf_weights.ROTATIONS in header.tensors or scaling not in ("none", "linear"):
        raise ValueError(
            f"'{file}': the rotations are scaled in a way ({scaling}, or by "
            f"{gguf_weights.ROTATIONS}) that its metadata does not describe. Put the "
            f"model's {configuration.FILE} beside the file."
        )
    if scaling == "linear":
        factor = float(found.get("rope.scaling.factor", 1.0))
        values["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    return values


def _llama(found: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    width = values["hidden_size"] // values["num_attention_heads"]
    width = found.get("rope.dimension_count", width)
    return {
        "model_type": "llama",
        "head_dim": found.get("attention.key_length", width),
    }


def _gemma3(found: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    width = found.get("attention.key_length", 256)
    whole = values["num_hidden_layers"] == _LAYERS_OF_27B
    whole_width = values["hidden_size"] // values["num_attention_heads"]
    result = {
        "model_type": "gemma3_text",
        "head_dim": width,
        "query_pre_attn_scalar": whole_width if whole else width,
        "sliding_window_pattern": found.get("attention.sliding_window_pattern", 6),
        "rope_local_base_freq": found.get("rope.freq_base_swa", 10_000.0),
    }
    for key, name in (
        ("attention.sliding_window", "sliding_window"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        if key in found:
            result[name] = found[key]
    return result
