"""Read one adapter out of a tree of SkyRL's tx, which serves and trains several.

Every LoRA layer has `lora_A [layers?, slots, experts?, in, R]` and
`lora_B [layers?, slots, experts?, R, out]` for all slots at one rank `R`, and for each
slot its rank in `lora_ranks` and `alpha / rank` in `lora_scaling`. Columns behind a
slot's rank are zeros. Experts have the adapter's rank divided by their number. Slot 0
is the engine's own. Layers are stacked below `_stacked`.

A fused projection (`qkv_proj`, `gate_up_proj`) is one adapter here as it is there: its
parts share `lora_A`, and their outputs are interleaved by groups that only the model's
configuration tells.

Source: skyrl/tx/layers/lora.py, skyrl/tx/layers/stacked.py (skyrl 0.4.0).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.axes import Axes
from para_jax.layouts.copies import is_optimizer
from para_jax.layouts.layout import Facts, Half, Layout, Leaves
from para_jax.layouts.pairs import Key
from para_jax.layouts.slots import Slot

_SIDES = {"lora_A": "a", "lora_B": "b"}
_STACKED = "_stacked"


def _half(key: Key) -> Half | None:
    side = _SIDES.get(key[-1])
    return Half(key[:-1], "", side) if side else None


def _kernels(half: Half) -> list[Key]:
    # Of a Linear, of experts, and of an Embed.
    return [(*half.module, name) for name in ("kernel", "weight", "embedding")]


def _path(module: Key) -> Key:
    return tuple(x for x in module if x != _STACKED)


def _facts(leaves: Leaves, slot: int | None) -> Mapping[Key, Facts]:
    return {
        key[:-1]: _of_module(key[:-1], leaves, slot)
        for key, leaf in leaves.items()
        if key[-1] == "lora_A" and hasattr(leaf, "shape") and not is_optimizer(key)
    }


def _of_module(module: Key, leaves: Leaves, slot: int | None) -> Facts:
    path = "/".join(_path(module))
    a = leaves[(*module, "lora_A")].shape
    stack = "L" if _STACKED in module else ""
    experts = len(a) - len(stack) - 3
    if experts not in (0, 1):
        raise ValueError(
            f"'{path}': lora_A {list(a)}, expected [{'layers, ' * len(stack)}slots, "
            "in, r], or experts behind the slots."
        )
    index = _index(path, a[len(stack)], slot)
    keys = [(*module, name) for name in ("lora_ranks", "lora_scaling")]
    rank, scale = (_one(path, key, leaves, index) for key in keys)
    letters = stack + "L" * experts
    return Facts(
        axes=Axes(f"{letters}mr", f"{letters}rn"),
        scale=float(scale),
        slot=Slot(index, len(stack), int(rank), keys[0], keys[1]),
    )


def _index(path: str, slots: int, slot: int | None) -> int:
    if slot is None and slots > 1:
        raise ValueError(
            f"'{path}' holds {slots} adapters. Say which one, from_tree(slot=): its "
            "adapter_index in the engine. Slot 0 is the engine's own."
        )
    index = slot or 0
    if not 0 <= index < slots:
        raise ValueError(f"slot={slot}: '{path}' has slots 0 to {slots - 1}.")
    return index


def _one(path: str, key: Key, leaves: Leaves, index: int) -> Any:
    """Return a slot's number in a leaf; layers of one stack have the same."""
    if not hasattr(leaves.get(key), "shape"):
        raise ValueError(
            f"'{path}' has no {key[-1]} beside its factors, which holds the number of "
            "each slot. Give the state of the whole model, nnx.state(model)."
        )
    values = np.unique(np.asarray(leaves[key])[..., index])
    if values.size != 1 or not np.isfinite(values[0]):
        raise ValueError(
            f"'{path}': {key[-1]} of slot {index} is {values.tolist()}, expected one "
            "number for all layers."
        )
    return values[0]


LAYOUT = Layout(
    name="tx",
    half=_half,
    kernels=_kernels,
    alpha=Message(Argument("scale"), ": lora_scaling of the slot"),
    path=_path,
    flat=True,
    facts=lambda tree, leaves, slot: _facts(leaves, slot),
    slots=True,
)
