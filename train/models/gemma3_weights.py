"""Weights of Gemma 3 from the files of transformers. Runs on the host."""

import functools
import pathlib
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from train.models import checkpoint
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
    d, whole = config.hidden_size, functools.partial(_whole, prefix)
    params = {
        "model/embed_tokens/embedding": whole("embed_tokens", config.vocab_size, d),
        "model/norm/scale": whole("norm", d),
    }
    for path, shape in _block(config).items():
        # A norm's weight is a vector, a layer's a matrix to be transposed.
        leaf = "kernel" if len(shape) == 2 else "scale"
        module = path.replace("/", ".")
        params[f"model/layers/{path}/{leaf}"] = Leaf(
            names=tuple(
                f"{prefix}layers.{i}.{module}.weight"
                for i in range(config.num_hidden_layers)
            ),
            shape=(config.num_hidden_layers, *shape),
            convert=checkpoint.transposed if leaf == "kernel" else np.asarray,
            stacked=True,
        )
    return params


def load(
    folder: pathlib.Path, config: Config, dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """Load the params of `gemma3.Gemma3(config)` from a model folder.

    Tensors of a vision tower are left out.

    Args:
      folder: The folder with model.safetensors, or its shards.
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


def _whole(prefix: str, module: str, *shape: int) -> Leaf:
    return Leaf(names=(f"{prefix}{module}.weight",), shape=shape)


def _block(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the params of one layer, by module."""
    d, wide, e = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * e, config.num_key_value_heads * e
    return {
        "self_attn/q_proj": (d, queries),
        "self_attn/k_proj": (d, keys),
        "self_attn/v_proj": (d, keys),
        "self_attn/o_proj": (queries, d),
        "self_attn/q_norm": (e,),
        "self_attn/k_norm": (e,),
        "mlp/gate_proj": (d, wide),
        "mlp/up_proj": (d, wide),
        "mlp/down_proj": (wide, d),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
        "pre_feedforward_layernorm": (d,),
        "post_feedforward_layernorm": (d,),
    }
