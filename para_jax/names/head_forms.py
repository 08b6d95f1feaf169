"""Convert an update between the forms of a kernel in JAX and Hugging Face.

A JAX kernel may hold the attention's scale, or order the outputs of a head for another
rotary embedding, or be divided before the update is added. All concern the output side
or the scale, so `a` stays the same. Axis letters: `n` outputs, `h` the size of a head.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from para_jax._adapters.adapter import Adapter, Array
from para_jax._adapters.messages import Argument, Message
from para_jax.names.patterns import Module

Direction = Literal["to_hf", "from_hf"]


def update(
    adapter: Adapter,
    module: Module,
    direction: Direction,
    head_dim: int | None,
    path: str,
) -> Adapter:
    """Convert the update of one side's kernel to that of the other side's.

    Args:
      adapter: The update of the JAX kernel, or of Hugging Face's.
      module: The differences between the kernels.
      direction: `to_hf` or `from_hf`, which are inverse.
      head_dim: `h`, needed if the kernels differ.
      path: The module, for errors.

    Raises:
      ValueError: if `head_dim` is needed and not given, or does not divide the outputs.
    """
    b, factor = _converted(adapter.b, module, direction, head_dim, path)
    if module.divided:
        root = math.sqrt(adapter.inputs)
        factor = factor * root if direction == "to_hf" else factor / root
    return dataclasses.replace(adapter, b=b, scale=adapter.scale * factor)


def bias(
    values: Array, module: Module, direction: Direction, head_dim: int | None, path: str
) -> Array:
    """Convert a bias `[n]` as `update` converts the outputs."""
    changed, factor = _converted(values, module, direction, head_dim, path)
    wide = np.promote_types(values.dtype, np.float32)  # To round once.
    return (changed.astype(wide) * factor).astype(values.dtype)


def _converted(
    values: Array, module: Module, direction: Direction, head_dim: int | None, path: str
) -> tuple[Array, float]:
    """Return `[..., n]` in the other kernel's order, and the factor between them."""
    if not (module.scaled or module.interleaved):
        return values, 1.0
    h = _head(values.shape[-1], head_dim, path)
    if module.interleaved:
        # A head is `[h / 2, 2]` with its rotary pairs side by side, and `[2, h / 2]`
        # with them half a head apart: one is the transpose of the other.
        pairs = (h // 2, 2) if direction == "to_hf" else (2, h // 2)
        split = values.reshape(*values.shape[:-1], -1, *pairs)
        values = split.swapaxes(-1, -2).reshape(values.shape)
    factor = math.sqrt(h) if module.scaled else 1.0
    return values, factor if direction == "to_hf" else 1 / factor


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
            f"'{path}' has {outputs} outputs, which are not heads of {head_dim}: "
            "expected an even head_dim that divides them."
        )
    return head_dim
