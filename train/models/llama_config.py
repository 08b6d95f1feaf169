"""The shape of a Llama model, from the `config.json` of transformers, or GGUF.

The defaults are those of transformers' `LlamaConfig`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

from train.models import configuration, folder_config
from train.models.rope import Bounds

_FORM = {
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
}
_BOUNDS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The shape of a Llama model, under the names of `LlamaConfig`.

    Attributes:
      vocab_size: The number of tokens `V`.
      hidden_size: The model's width `d`.
      intermediate_size: The width of the feed-forward network.
      num_hidden_layers: The number of layers `L`.
      num_attention_heads: The heads `h` of queries.
      num_key_value_heads: The heads `g` of keys and values.
      head_dim: Their width `e`.
      rope_theta: The base of the rotations.
      rope_factor: The divisor of positions.
      rope_bounds: The numbers of turns between which Llama 3 divides positions less
        and less; None if it divides all alike.
      rms_norm_eps: The term added to a mean square in norms.
      tie_word_embeddings: Whether the head is the table of embeddings.
    """

    vocab_size: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0
    rope_bounds: Bounds | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False

    norm_offset: ClassVar[float] = 0.0
    """Norms' weights are stored as they are."""


def read_config(folder: pathlib.Path) -> Config:
    """Read the configuration in a model folder of transformers, or of a GGUF file.

    Raises:
      FileNotFoundError: if it has neither `config.json` nor a GGUF file.
      ValueError: if the model is of another architecture than the one written here.
    """
    values = folder_config.read(folder)
    values = {name: x for name, x in values.items() if x is not None}
    heads = values.get("num_attention_heads", Config.num_attention_heads)
    width = values.get("hidden_size", Config.hidden_size) // heads
    values = {"num_key_value_heads": heads, "head_dim": width} | values
    values |= _rope(folder, values)
    return configuration.build(Config, values, folder=folder, form=_FORM)


def _rope(folder: pathlib.Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotations' values, which the file has under other names."""
    # The older name, which has no base in it, and the present one.
    found = {**(values.get("rope_scaling") or {}), **values.get("rope_parameters", {})}
    kind = found.get("rope_type", found.get("type", "default"))
    wanted = {"default": (), "linear": ("factor",), "llama3": ("factor", *_BOUNDS)}
    if kind not in wanted or any(name not in found for name in wanted[kind]):
        raise ValueError(
            f"'{folder / configuration.FILE}': the rotations are {found}, expected "
            "rope_type 'default', 'linear' with its factor, or 'llama3' with its "
            f"factor and {', '.join(_BOUNDS)}. No other scaling is implemented."
        )
    result: dict[str, Any] = {}
    if "rope_theta" in found:
        result["rope_theta"] = float(found["rope_theta"])
    if kind != "default":
        result["rope_factor"] = float(found["factor"])
    if kind == "llama3":
        result["rope_bounds"] = Bounds(*(float(found[name]) for name in _BOUNDS))
    return result
