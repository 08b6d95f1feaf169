"""Weights of Llama from the files of transformers, or GGUF. Runs on the host."""

import pathlib
from typing import Any

from jax.typing import DTypeLike

from train.models import checkpoint, decoder_weights
from train.models.checkpoint import Leaf
from train.models.llama_config import Config

# Older files hold the rotations' angles of each layer.
_BUFFERS = ("*.rotary_emb.inv_freq",)
_HEAD = "lm_head.weight"


def leaves(config: Config) -> dict[str, Leaf]:
    """Return the stored tensors of each of the params of `llama.Llama(config)`."""
    d = config.hidden_size
    block = {
        **decoder_weights.attention(config),
        **decoder_weights.mlp(config),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
    }
    params = decoder_weights.leaves(config, block, prefix="model.")
    if config.tie_word_embeddings:
        return params
    head = Leaf((_HEAD,), (d, config.vocab_size), checkpoint.transposed)
    return params | {"lm_head/kernel": head}


def load(
    folder: pathlib.Path, config: Config, dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """Load the params of `llama.Llama(config)` from a model folder.

    Args:
      folder: The folder with model.safetensors, or its shards, or a GGUF file.
      config: The shape of the model, as from `read_config`.
      dtype: The dtype of the params; by default the files' own.

    Raises:
      FileNotFoundError: if there are no weights.
      ValueError: if the tensors do not match the model; the message lists all.
    """
    # Of tied embeddings, the head is the same again.
    tied = (_HEAD,) if config.tie_word_embeddings else ()
    return checkpoint.load(
        folder, leaves(config), dtype=dtype, ignored=(*_BUFFERS, *tied)
    )
