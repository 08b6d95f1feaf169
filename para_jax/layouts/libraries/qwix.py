"""Read trees of qwix, on Linen and NNX: `<weight>_lora_{a,b}` beside the weight.

The operation that uses a weight makes its factors. A `dot_general` makes
`a [*batch, in, r]` and `b [*batch, r, out]` with flattened sides; an `einsum` makes
`a [batch and inputs.., r]` in the kernel's order and `b [r, outputs..]`, so that all
members of a batch (experts) share one `b`: ONE matrix of rank r, decomposed once. A
convolution makes `a [*window, in, r]`. The scale `alpha / rank` is in the `LoraRule`.

Source: qwix/_src/providers/lora.py.
"""

import re

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.layout import Half, Layout
from para_jax.layouts.pairs import Key

_NAME = re.compile(r"(?P<weight>.+)_lora_(?P<side>[ab])$")


def half(key: Key) -> Half | None:
    """Read the key of a leaf in any layout of qwix."""
    match = _NAME.match(key[-1])
    return Half(key[:-1], match["weight"], match["side"]) if match else None


def kernels(found: Half) -> list[Key]:
    """Return the key of the base weight, beside its factors."""
    return [(*found.module, found.weight)]


LAYOUT = Layout(
    name="qwix",
    half=half,
    kernels=kernels,
    alpha=Message(
        Argument("alpha"), ": alpha of the qwix.LoraRule that the model was made with"
    ),
)
