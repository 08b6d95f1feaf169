"""The shape of a Gemma 3 text model, from the `config.json` of transformers, or GGUF.

Google's own files leave out defaults, and older ones have older names; the defaults
here are those of transformers' `Gemma3TextConfig`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

from train.models import configuration, folder_config

_FORM = {
    "model_type": "gemma3_text",
    "attention_bias": False,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The shape of a Gemma 3 text model, under the names of `Gemma3TextConfig`.

    Attributes:
      vocab_size: The number of tokens `V`.
      hidden_size: The model's width `d`.
      intermediate_size: The width of the feed-forward network.
      num_hidden_layers: The number of layers `L`.
      num_attention_heads: The heads `h` of queries.
      num_key_value_heads: The heads `g` of keys and values.
      head_dim: Their width `e`.
      sliding_window: The number of positions a sliding layer sees, including its own.
      global_layers: The numbers of the layers that see all positions.
      rope_theta: The base of the rotations in global layers.
      rope_factor: The divisor of positions in global layers.
      rope_local_base_freq: The base of the rotations in sliding layers.
      query_pre_attn_scalar: Attention's products are divided by its square root.
      rms_norm_eps: The term added to a mean square in norms.
      attn_logit_softcapping: The bound of attention's products, or None.
      final_logit_softcapping: The bound of the logits, or None.
    """

    vocab_size: int = 262_208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    sliding_window: int = 4096
    global_layers: tuple[int, ...]
    rope_theta: float = 1_000_000.0
    rope_factor: float = 1.0
    rope_local_base_freq: float = 10_000.0
    query_pre_attn_scalar: float = 256
    rms_norm_eps: float = 1e-6
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    norm_offset: ClassVar[float] = 1.0
    """Norms' weights are stored less 1."""


def read_config(folder: pathlib.Path) -> Config:
    """Read the configuration in a model folder of transformers, or of a GGUF file.

    For a model with a vision tower (`model_type` gemma3), it is the configuration
    of the text part.

    Raises:
      FileNotFoundError: if it has neither `config.json` nor a GGUF file.
      ValueError: if the model is of another architecture than the one written here.
    """
    values = folder_config.read(folder)
    if values.get("model_type") == "gemma3":
        values = {"model_type": "gemma3_text"} | values.get("text_config", {})
    values = {name: x for name, x in values.items() if x is not None}
    values |= _rope(folder, values)
    layers = values.get("num_hidden_layers", Config.num_hidden_layers)
    values["global_layers"] = _global_layers(values, layers)
    return configuration.build(Config, values, folder=folder, form=_FORM)


def _global_layers(values: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    if kinds := values.get("layer_types"):
        return tuple(i for i, kind in enumerate(kinds) if kind == _FULL)
    pattern = values.get("sliding_window_pattern", 6)
    return tuple(range(pattern - 1, layers, pattern))


def _rope(folder: pathlib.Path, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the rotation's values, which the file has under other names."""
    kinds = values.get("rope_parameters") or {}
    local, whole = kinds.get(_SLIDING) or {}, kinds.get(_FULL) or {}
    whole = {**whole, **(values.get("rope_scaling") or {})}
    types = {x.get("rope_type", x.get("type", "default")) for x in (local, whole)}
    if not types <= {"default", "linear"} or "factor" in local:
        raise ValueError(
            f"'{folder / configuration.FILE}': the rotations are {local} and {whole}, "
            "expected rope_type 'default', or 'linear' for full_attention. No other "
            "scaling is implemented."
        )
    found = {
        "rope_theta": whole.get("rope_theta"),
        "rope_factor": whole.get("factor"),
        "rope_local_base_freq": local.get("rope_theta"),
    }
    return {name: float(x) for name, x in found.items() if x is not None}


GEMMA3_4B = Config(
    hidden_size=2560,
    intermediate_size=10240,
    num_hidden_layers=34,
    sliding_window=1024,
    global_layers=(5, 11, 17, 23, 29),
    rope_factor=8.0,
)
"""The text part of google/gemma-3-4b-it: 3.88 billion params."""
