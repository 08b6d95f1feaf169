"""The tensors of causal decoders in the files of transformers. Runs on the host."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from train.models import checkpoint
from train.models.checkpoint import Leaf


def leaves(
    config: Any, block: Mapping[str, tuple[int, ...]], *, prefix: str
) -> dict[str, Leaf]:
    """Return the stored tensors of the params of a model of `train.models.decoder`.

    Args:
      config: The shape of the model.
      block: The shapes of the params of one layer, by module.
      prefix: The prefix of the tensors' names.
    """
    d, count = config.hidden_size, config.num_hidden_layers
    table, norm = f"{prefix}embed_tokens.weight", f"{prefix}norm.weight"
    params = {
        "model/embed_tokens/embedding": Leaf((table,), (config.vocab_size, d)),
        "model/norm/scale": Leaf((norm,), (d,)),
    }
    for path, shape in block.items():
        # A norm's weight is a vector, a layer's a matrix to be transposed.
        leaf = "kernel" if len(shape) == 2 else "scale"
        module = path.replace("/", ".")
        params[f"model/layers/{path}/{leaf}"] = Leaf(
            names=tuple(f"{prefix}layers.{i}.{module}.weight" for i in range(count)),
            shape=(count, *shape),
            convert=checkpoint.transposed if leaf == "kernel" else np.asarray,
            stacked=True,
        )
    return params


def attention(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the kernels of attention, by module."""
    d, e = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * e, config.num_key_value_heads * e
    return {
        "self_attn/q_proj": (d, queries),
        "self_attn/k_proj": (d, keys),
        "self_attn/v_proj": (d, keys),
        "self_attn/o_proj": (queries, d),
    }


def mlp(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the kernels of the feed-forward network, by module."""
    d, wide = config.hidden_size, config.intermediate_size
    return {
        "mlp/gate_proj": (d, wide),
        "mlp/up_proj": (d, wide),
        "mlp/down_proj": (wide, d),
    }
