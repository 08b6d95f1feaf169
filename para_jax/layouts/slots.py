"""Take one adapter out of leaves that hold several, and put it back into its slot.

A server of many adapters stacks them along an axis of every factor, at one rank for
all: a smaller adapter has zeros behind its own rank. Beside the factors lie the rank
and the scale of each slot. `view` and `filled` are traceable under `jit`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Array
from para_jax.layouts.axes import Shape


class Slot(NamedTuple):
    """The place of one adapter in the leaves of a module.

    Attributes:
      index: Its number.
      axis: The axis of the slots in both factors, and in the leaves beside them.
      rank: Its rank; 0 if it does not adapt the module.
      ranks: The key of the leaf with the rank of each slot.
      scales: The key of the leaf with the scale of each slot.
    """

    index: int
    axis: int
    rank: int
    ranks: tuple[str, ...]
    scales: tuple[str, ...]


def viewed(slot: Slot | None, a: Shape, b: Shape) -> tuple[Shape, Shape]:
    """Return the shapes of `view`; without a slot, the same shapes.

    Factors that do not fit each other stay whole, for the error to show.
    """
    if slot is None:
        return a, b
    if len(b) != len(a) or (a[slot.axis], a[-1]) != (b[slot.axis], b[-2]):
        return a, b
    a, b = (x[: slot.axis] + x[slot.axis + 1 :] for x in (a, b))
    return (*a[:-1], slot.rank), (*b[:-2], slot.rank, b[-1])


def view(slot: Slot, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the factors of one slot at its own rank, `[.., r]` and `[.., r, n]`."""
    one = (*(slice(None),) * slot.axis, slot.index)
    return a[one][..., : slot.rank], b[one][..., : slot.rank, :]


def filled(
    slot: Slot,
    path: str,
    keys: tuple[tuple[str, ...], tuple[str, ...]],
    factors: tuple[Array, Array],
    leaves: Mapping[tuple[str, ...], Any],
) -> dict[tuple[str, ...], Array]:
    """Return the leaves with new factors of scale 1 in one slot.

    Raises:
      ValueError: if the slot has no room for their rank.
    """
    rank, room = factors[0].shape[-1], leaves[keys[0]].shape[-1]
    if rank > room:
        raise ValueError(
            f"'{path}' has rank {rank}: the slots of this tree have room for {room}."
        )
    still = [(0, 0)] * (factors[0].ndim - 2)
    more = (0, room - rank)
    widths = ([*still, (0, 0), more], [*still, more, (0, 0)])
    new = [_padded(x, width) for x, width in zip(factors, widths, strict=True)]
    values = dict(zip((*keys, slot.ranks, slot.scales), (*new, rank, 1), strict=True))
    return {key: _set(leaves[key], slot, value) for key, value in values.items()}


def _padded(factor: Array, widths: list[tuple[int, int]]) -> Array:
    xp = np if isinstance(factor, np.ndarray) else jnp
    return xp.pad(factor, widths)


def _set(leaf: Any, slot: Slot, value: Any) -> Any:
    one = (*(slice(None),) * slot.axis, slot.index)
    if isinstance(leaf, jax.Array):
        return leaf.at[one].set(jnp.asarray(value, leaf.dtype))
    new = np.array(leaf)
    new[one] = value
    return new
