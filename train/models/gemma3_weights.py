"""Weights of Gemma 3 from the files of transformers, or GGUF. Runs on the host."""

import pathlib
from typing import Any

from jax.typing import DTypeLike

from train.models import checkpoint, decoder_weights
from train.models.checkpoint import Leaf
from train.models.gemma3_config import Config

# What precedes the tensors' names in a model that sees too, whose files are written in
# two ways, and in a text model.
_BASES = ("model.language_model.", "language_model.model.", "model.")
_IGNORED = (
    "*vision_tower.*",
    "*multi_modal_projector.*",
    "*lm_head.weight",  # Of tied embeddings: the same again.
)


def leaves(config: Config, *, prefix: str = "model.") -> dict[str, Leaf]:
    """Return the stored tensors of each of the params of `gemma3.Gemma3(config)`.

    Args:
      config: The shape of the model.
      prefix: The prefix of the tensors' names; a text model's by default.
    """
    d, e = config.hidden_size, config.head_dim
    block = {
        **decoder_weights.attention(config),
        "self_attn/q_norm": (e,),
        "self_attn/k_norm": (e,),
        **decoder_weights.mlp(config),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
        "pre_feedforward_layernorm": (d,),
        "post_feedforward_layernorm": (d,),
    }
    return decoder_weights.leaves(config, block, prefix=prefix)


def load(
    folder: pathlib.Path, config: Config, dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """Load the params of `gemma3.Gemma3(config)` from a model folder.

    Tensors of a vision tower are left out.

    Args:
      folder: The folder with model.safetensors, or its shards, or a GGUF file.
      config: The shape of the model, as from `read_config`.
      dtype: The dtype of the params; by default the files' own.

    Raises:
      FileNotFoundError: if there are no weights.
      ValueError: if the tensors do not match the model; the message lists all.
    """
    return checkpoint.load(
        folder,
        leaves(config, prefix=""),
        dtype=dtype,
        ignored=_IGNORED,
        bases=_BASES,
    )
