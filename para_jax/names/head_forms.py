"""An update in the form that Hugging Face keeps its kernel in, and back.

What differs is on the output side alone, so `a` stays as it is. `n` outputs, `h` the
size of a head.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from para_jax._adapters.adapter import Adapter, Array
from para_jax._adapters.messages import Argument, Message
from para_jax.names.patterns import Module

Way = Literal["to_hf", "from_hf"]


def update(
    adapter: Adapter, module: Module, way: Way, head_dim: int | None, path: str
) -> Adapter:
    """Returns an update of the one kernel as that of the other.

    Args:
      adapter: The update of the JAX kernel, or of Hugging Face's.
      module: What differs between the kernels.
      way: Which of the two is wanted. They are inverse.
      head_dim: `h`, where something differs.
      path: The module, for errors.

    Raises:
      ValueError: if `head_dim` is needed and not given, or does not divide the outputs.
    """
    b, factor = _changed(adapter.b, module, way, head_dim, path)
    return dataclasses.replace(adapter, b=b, scale=adapter.scale * factor)


def bias(
    values: Array, module: Module, way: Way, head_dim: int | None, path: str
) -> Array:
    """Returns a bias `[n]` changed as the outputs of `update` are."""
    changed, factor = _changed(values, module, way, head_dim, path)
    wide = np.promote_types(values.dtype, np.float32)  # To round once.
    return (changed.astype(wide) * factor).astype(values.dtype)


def _changed(
    values: Array, module: Module, way: Way, head_dim: int | None, path: str
) -> tuple[Array, float]:
    """Returns `[..., n]` in the order of the other kernel, and the factor between."""
    if not (module.scaled or module.interleaved):
        return values, 1.0
    h = _head(values.shape[-1], head_dim, path)
    if module.interleaved:
        pairs = (h // 2, 2) if way == "to_hf" else (2, h // 2)
        split = values.reshape(*values.shape[:-1], -1, *pairs)
        values = split.swapaxes(-1, -2).reshape(values.shape)
    factor = math.sqrt(h) if module.scaled else 1.0
    return values, factor if way == "to_hf" else 1 / factor


def _head(outputs: int, head_dim: int | None, path: str) -> int:
    if head_dim is None:
        raise ValueError(
            Message(
                f"'{path}' is kept in another form in JAX than in Hugging Face "
                "(divided by sqrt(head_dim), or its rotary pairs side by side). Give ",
                Argument("head_dim"),
                ", from the model's config.json, or hidden_size / num_attention_heads "
                "there.",
            )
        )
    if head_dim < 2 or head_dim % 2 or outputs % head_dim:
        raise ValueError(
            f"'{path}' has {outputs} outputs, which are no heads of {head_dim}: "
            "expected an even head_dim that divides them."
        )
    return head_dim
