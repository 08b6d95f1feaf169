"""The tensors of a GGUF file under the names, and in the form, of transformers.

llama.cpp renames tensors, and changes some of them: of Llama it permutes the rows of
queries and keys, because it rotates neighbouring coordinates and transformers the two
halves of a head; of Gemma 3 it adds 1 to the weights of norms. Both are undone here.
Runs on the host.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from train.models import gguf_file

_Convert = Callable[[np.ndarray], np.ndarray]

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
_BLOCKS = {
    "llama": _PROJECTIONS | {"ffn_norm": "post_attention_layernorm"},
    "gemma3": _PROJECTIONS
    | {
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
"""The modules of a block, by architecture."""

ROTATIONS = "rope_freqs.weight"
"""Divisors of the rotations' angles, which transformers computes from its config."""


class Stored(NamedTuple):
    """A tensor in its file."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def tensors(file: pathlib.Path) -> dict[str, Stored]:
    """Return the tensors of a file by their names in transformers.

    Each is read and dequantised to float32 when asked for. A tensor of an unknown name
    keeps it.

    Raises:
      ModuleNotFoundError: if the package `gguf` is not installed.
      ValueError: if the file is damaged, or of an unknown architecture.
    """
    header = gguf_file.read_header(file)
    kind = architecture(file, header)
    return {
        _renamed(kind, name): Stored(
            tensor.shape,
            functools.partial(_read, file, tensor, _conversion(kind, name, header)),
        )
        for name, tensor in header.tensors.items()
        if name != ROTATIONS
    }


def architecture(file: pathlib.Path, header: gguf_file.Header) -> str:
    """Return a file's architecture.

    Raises:
      ValueError: if it is not one of those here.
    """
    kind = header.metadata.get("general.architecture")
    if kind not in _BLOCKS:
        raise ValueError(
            f"'{file}': general.architecture is {kind!r}, expected one of "
            f"{sorted(_BLOCKS)}. Save other models as safetensors with transformers."
        )
    return kind


def _renamed(kind: str, name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{suffix}"
    # As in `blk.3.attn_q`.
    prefix, _, rest = stem.partition(".")
    number, _, module = rest.partition(".")
    if prefix != "blk" or module not in _BLOCKS[kind]:
        return name
    return f"model.layers.{number}.{_BLOCKS[kind][module]}.{suffix}"


def _conversion(kind: str, name: str, header: gguf_file.Header) -> _Convert:
    if kind == "gemma3" and name.endswith("norm.weight"):
        return _less_one
    if kind == "llama":
        values: Any = header.metadata
        queries = values.get("llama.attention.head_count", 1)
        keys = values.get("llama.attention.head_count_kv", queries)
        heads = {"attn_q": queries, "attn_k": keys}
        module = name.removesuffix(".weight").rpartition(".")[2]
        if module in heads:
            return functools.partial(_halves, heads[module])
    return _same


def _read(
    file: pathlib.Path, tensor: gguf_file.Tensor, convert: _Convert
) -> np.ndarray:
    return convert(gguf_file.read(file, tensor))


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _less_one(x: np.ndarray) -> np.ndarray:
    return x - 1


def _halves(heads: int, x: np.ndarray) -> np.ndarray:
    """Order a head's rows by halves: the file has them in pairs."""
    pairs = x.reshape(heads, -1, 2, x.shape[-1])
    return pairs.swapaxes(1, 2).reshape(x.shape)
