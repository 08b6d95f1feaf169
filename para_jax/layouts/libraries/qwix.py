"""qwix, on Linen and on NNX: `<weight>_lora_a` and `_lora_b` beside the weight.

Both are made by the operation that uses the weight. A `dot_general` gives
`a [*batch, in, r]` and `b [*batch, r, out]` with flattened sides; an `einsum` gives
`a [batch and inputs.., r]` in the kernel's order and `b [r, outputs..]`, so that all
of a batch (experts) share one `b`: ONE matrix of rank r, decomposed once. A convolution
gives `a [*window, in, r]`. The scale `alpha / rank` is in the `LoraRule`.

Source: qwix/_src/providers/lora.py.
"""

import re

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.layout import Half, Layout
from para_jax.layouts.pairs import Key

_NAME = re.compile(r"(?P<weight>.+)_lora_(?P<side>[ab])$")


def half(key: Key) -> Half | None:
    """Returns what a key says in all layouts that are made by qwix."""
    match = _NAME.match(key[-1])
    return Half(key[:-1], match["weight"], match["side"]) if match else None


def kernels(found: Half) -> list[Key]:
    """Returns where the base weight is: beside its factors."""
    return [(*found.module, found.weight)]


LAYOUT = Layout(
    name="qwix",
    half=half,
    kernels=kernels,
    alpha=Message(
        Argument("alpha"), ": alpha of the qwix.LoraRule that the model was made with"
    ),
)
