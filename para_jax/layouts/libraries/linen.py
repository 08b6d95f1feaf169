"""Linen trees of a user's own: `a [*stack, in, r]` and `b [*stack, r, out]` a module.

Stacked for `nn.scan`, or a module a layer. What `para_jax.to_params` makes, and what
`para_jax.flax.linen` runs.
"""

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.layout import Half, Layout
from para_jax.layouts.pairs import Key


def _half(key: Key) -> Half | None:
    named = len(key) > 2 and key[-2] == "lora"  # That is gemma's.
    return Half(key[:-1], "", key[-1]) if key[-1] in ("a", "b") and not named else None


def _kernels(half: Half) -> list[Key]:
    below = half.module[1:] if half.module[:1] == ("lora",) else half.module
    return [(*half.module, "w"), ("params", *below, "kernel")]


LAYOUT = Layout(
    name="linen",
    half=_half,
    kernels=_kernels,
    flat=True,
    alpha=Message(
        Argument("scale"),
        ": alpha / r of the run that trained it, 1 for what to_params made",
    ),
)
