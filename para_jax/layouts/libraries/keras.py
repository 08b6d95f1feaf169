"""Read trees of Keras 3: variables by the path of their layer, or by their own path.

`lora_kernel_a [*inputs, r]` and `lora_kernel_b [r, out]` of Dense, EinsumDense and
convolutions, `lora_embeddings_a [vocabulary, r]` and `lora_embeddings_b [r, out]` of
Embedding. The update `lora_alpha / r * a @ b` has the kernel's shape, and `b` its last
axis alone: the input side of an EinsumDense `[heads, in, size]` has two axes, although
the heads are outputs (`para_jax.names.Module.heads`).

A tree may be nested, flat (`{variable.path: value}`), or both, as
`para_jax.layouts.keras_tree` makes it. That one has `lora_alpha` beside the factors,
which is an attribute of the layer, not a variable.

Source: keras/src/layers/core/{dense,einsum_dense,embedding}.py and
keras/src/layers/convolutional/base_conv.py of keras 3.15.1.
"""

import re

from para_jax._adapters.checkpoint import Layer
from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.layout import Half, Layout
from para_jax.layouts.pairs import Key, Pair

ALPHA = "lora_alpha"

NUMBER = re.compile(r"lora/(0|[1-9]\d*)")
"""The path of a module in keras-hub's files, which says nothing to other readers."""

_FACTORS = {
    f"lora_{weight}_{side}": (weight, side)
    for weight in ("kernel", "embeddings")
    for side in "ab"
}


def _half(key: Key) -> Half | None:
    # A variable's path is one key of a flat tree.
    *module, name = "/".join(key).split("/")
    if name not in _FACTORS:
        return None
    weight, side = _FACTORS[name]
    return Half(tuple(module), weight, side)


def _kernels(half: Half) -> list[Key]:
    path = "/".join(half.module)
    return [
        (*half.module, half.weight),
        (path, half.weight),
        (f"{path}/{half.weight}",),
    ]


def layer(pair: Pair) -> Layer:
    """Return the kind of layer of a pair, by the factor's name and its axes.

    A kernel of four axes or more is a convolution's. One of three may be that of a
    one-dimensional convolution or of attention, which only its layer can tell.
    """
    if pair.a[-1].endswith("lora_embeddings_a"):
        return Layer(kind="embedding")
    sizes = zip(pair.axes.a, pair.shapes[0], strict=True)
    return of_inputs(tuple(n for role, n in sizes if role == "m"))


def of_inputs(inputs: tuple[int, ...]) -> Layer:
    """Return the kind of layer whose factor `a` has these input axes."""
    if len(inputs) == 1:
        return Layer()
    return Layer(kind="einsum" if len(inputs) == 2 else "conv", window=inputs)


LAYOUT = Layout(
    name="keras",
    half=_half,
    kernels=_kernels,
    alpha=Message(
        Argument("alpha"), ": lora_alpha of the layers, which is their rank by default"
    ),
    leaf_alpha=ALPHA,
    layer=layer,
)
