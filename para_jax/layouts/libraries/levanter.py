"""Read trees of levanter (marin-levanter): a `LoraLinear` around a haliax `Linear`.

`wrapped` is the base, `lora/lora_A` and `lora/lora_B` are `Linear`s in torch's order:
`[*stack, r, inputs..]` and `[*stack, outputs.., r]`, named axes with the rank as
`LORA_R`. haliax's `Stacked` puts the layers on a leading axis, `BlockSeq` into a list.
Names of axes and `scale = alpha / r` belong to the classes: a tree of plain dicts lacks
them, so shapes and the base kernels tell the axes, and alpha is asked for. Every
`LoraLinear` runs at its own rank.

Source: levanter/adaptor/lora.py; haliax/nn/linear.py, haliax/core.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.axes import Axes
from para_jax.layouts.layout import Facts, Half, Layout
from para_jax.layouts.pairs import Key

_RANK = "LORA_R"
_SIDES = {"lora_A": "a", "lora_B": "b"}


def _half(key: Key) -> Half | None:
    # A `NamedArray` has one child, its array.
    key = key[:-1] if key[-2:] == ("weight", "0") else key
    found = len(key) > 3 and key[-3] == "lora" and key[-1] == "weight"
    side = _SIDES.get(key[-2]) if found else None
    return Half(key[:-3], "", side) if side else None


def _kernels(half: Half) -> list[Key]:
    weight = (*half.module, "wrapped", "weight")
    return [weight, (*weight, "0")]


def _path(module: Key) -> Key:
    return tuple(x for x in module if x != "stacked")


def _is_low_rank(node: Any) -> bool:
    # By its name: the class itself would need an import of levanter.
    return type(node).__name__ == "LowRankLinear"


def _facts(tree: Any) -> Mapping[Key, Facts]:
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_low_rank)
    found = {}
    for path, node in nodes:
        # `partition_lora_params` leaves None in the other part.
        if _is_low_rank(node) and node.lora_A is not None:
            key = tuple(jax.tree_util.keystr((x,), simple=True) for x in path)
            names = [x.weight.axis_names for x in (node.lora_A, node.lora_B)]
            found[key[:-1]] = Facts(axes=_axes(*names), scale=float(node.scale))
    return found


def _axes(a: tuple[str, ...], b: tuple[str, ...]) -> Axes:
    """Return the roles of named axes: both factors have those of the stack."""
    letters = dict.fromkeys(set(a) & set(b), "L") | {_RANK: "r"}
    return Axes(
        "".join(letters.get(name, "m") for name in a),
        "".join(letters.get(name, "n") for name in b),
    )


def _refit(tree: Any) -> Any:
    """Return the tree with the sizes of its axes and its scales as its arrays are."""
    return jax.tree.map(
        lambda x: _refitted(x) if _is_low_rank(x) else x, tree, is_leaf=_is_low_rank
    )


def _refitted(node: Any) -> Any:
    if node.lora_A is None:
        return node
    names = node.lora_A.weight.axis_names
    size = node.lora_A.weight.array.shape[names.index(_RANK)]
    rank = dataclasses.replace(node.lora_A.Out, size=size)
    return dataclasses.replace(
        node,
        lora_A=dataclasses.replace(node.lora_A, Out=rank),
        lora_B=dataclasses.replace(node.lora_B, In=rank),
        scale=1.0,
    )


LAYOUT = Layout(
    name="levanter",
    half=_half,
    kernels=_kernels,
    alpha=Message(Argument("alpha"), ": alpha of the LoraConfig, 8 unless it was set"),
    path=_path,
    torch=True,
    facts=lambda tree, leaves, slot: _facts(tree),
    refit=_refit,
)
