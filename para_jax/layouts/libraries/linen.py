"""Read a user's own Linen trees: `a [*stack, in, r]`, `b [*stack, r, out]` per module.

Layers are stacked for `nn.scan`, or a module each. `para_jax.to_params` makes such
trees, and `para_jax.flax.linen` runs them.

`from_tree(params, layout="linen", scale=...)` keeps the tree for `to_tree`, leaves the
levels `params` and `lora` out of the paths, and checks the factors against the base
kernels if the tree holds them. `para_jax.from_params(params, scale=...)` regroups the
nested dict that `to_params` made, whose levels all belong to the paths.
"""

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.layout import Half, Layout
from para_jax.layouts.pairs import Key


def _half(key: Key) -> Half | None:
    named = len(key) > 2 and key[-2] == "lora"  # That is gemma's.
    return Half(key[:-1], "", key[-1]) if key[-1] in ("a", "b") and not named else None


def _kernels(half: Half) -> list[Key]:
    # The collection `lora` lies beside `params` in a model's variables.
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
