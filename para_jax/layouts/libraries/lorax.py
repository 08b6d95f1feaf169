"""Read trees of jax-lorax: `w`, `a`, `b` in place of the weight, letters swapped.

`w [M, N]`, `a [k, N]`, `b [M, k]`, and the update is `alpha / k * b @ a`: for a Flax
kernel `b` is the input side. A convolution has `b [*window, in, k]` and
`a [1.., k, out]`. The last release runs on jax 0.4 alone, so its trees arrive in files,
by the names of the fields of a `LoraWeight`. `alpha` is not a leaf of that class, so a
file holds it only if the user stored it as well.

Source: lorax/transform.py, lorax/helpers.py.
"""

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.layout import Half, Layout
from para_jax.layouts.pairs import Key

_WEIGHTS = ("kernel", "w", "embedding", "weight")


def _half(key: Key) -> Half | None:
    sides = {"b": "a", "a": "b"}
    # The name of the weight is required: with `a` and `b` alone, every Linen tree would
    # read as one of lorax's, its sides swapped.
    found = key[-1] in sides and key[-2:-1] and key[-2] in _WEIGHTS
    return Half(key[:-1], "", sides[key[-1]]) if found else None


def _path(module: Key) -> Key:
    return module[:-1] if module[-1:] and module[-1] in _WEIGHTS else module


def _kernels(half: Half) -> list[Key]:
    return [(*half.module, "w")]


LAYOUT = Layout(
    name="lorax",
    half=_half,
    kernels=_kernels,
    alpha=Message(
        Argument("alpha"), ": alpha of lorax.LoraWeight, 1 unless it was set"
    ),
    path=_path,
    leaf_alpha="alpha",
)
