"""Describe a library's LoRA trees by one record of plain functions.

Runs on the host: keys and shapes alone are read, so the leaves may be tracers.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from para_jax._adapters.checkpoint import Layer
from para_jax._adapters.messages import Message
from para_jax.layouts import axes
from para_jax.layouts.axes import Axes, StackAxis
from para_jax.layouts.copies import (
    ModuleWeight,
    check_averages,
    is_optimizer,
    moments,
)
from para_jax.layouts.pairs import Key, Pair
from para_jax.layouts.slots import Slot, viewed

Leaves = Mapping[Key, Any]
"""The leaves of a tree by key: arrays, or anything else that has a shape."""


class Half(NamedTuple):
    """One half of an adapter, as read from the key of its leaf.

    Attributes:
      module: The key of the module.
      weight: The name of the adapted weight in it, or "" if the key does not tell.
      side: `a` for the input side, `b` for the output side.
    """

    module: Key
    weight: str
    side: str


class Facts(NamedTuple):
    """What a tree says of a module outside of the keys and shapes of its factors.

    Attributes:
      axes: The roles of the axes, by their names; without the axis of the slots.
      scale: The scale, if the tree holds it.
      slot: The place of the adapter, in a tree with several of them.
    """

    axes: Axes | None = None
    scale: float | None = None
    slot: Slot | None = None


class Layout(NamedTuple):
    """The rules by which one library names, places and scales LoRA factors.

    Attributes:
      name: The name by which users select it.
      half: Reads the key of a leaf.
      kernels: The keys at which the base weight of a module may be.
      alpha: The argument to give, and where the user finds it, if the scale is outside
        of the arrays: it begins with `Argument("alpha")` or `Argument("scale")`. Empty:
        the library has no scale, `delta = a @ b`.
      path: The module's path as the adapter's name, without the library's own levels.
      parts: The names of the projections that a fused one joins, by its path.
      flat: Whether both sides are flattened to one axis.
      one_rank: Whether the library runs one rank for all modules.
      known: Whether these paths are this library's, if only names distinguish it from
        the layout that it refines.
      refines: The layout whose trees these are too.
      leaf_alpha: The name of a leaf beside the factors that holds alpha.
      torch: Whether the axes are in torch's order: the rank before the inputs, and
        after the outputs.
      facts: Reads the facts of each module from the tree, its leaves, and the number
        of the slot. A module that the result lacks has none.
      slots: Whether a tree holds several adapters, each in a slot.
      refit: Corrects the classes of a tree for the new shapes of its leaves.
      layer: The kind of layer of a pair, if its axes alone do not tell.
    """

    name: str
    half: Callable[[Key], Half | None]
    kernels: Callable[[Half], Sequence[Key]]
    alpha: Message | str = ""
    path: Callable[[Key], Key] = lambda module: module
    parts: Callable[[str], tuple[str, ...]] = lambda path: ()
    flat: bool = False
    one_rank: bool = False
    known: Callable[[Sequence[str]], bool] = lambda paths: True
    refines: str = ""
    leaf_alpha: str = ""
    torch: bool = False
    facts: Callable[[Any, Leaves, int | None], Mapping[Key, Facts]] = (
        lambda tree, leaves, slot: {}
    )
    slots: bool = False
    refit: Callable[[Any], Any] = lambda tree: tree
    layer: Callable[[Pair], Layer] = lambda pair: Layer()


_COLLECTIONS = ("params", "lora", "model_params")


class _Site(NamedTuple):
    path: Key
    key: Key
    module: Key
    weight: str
    sides: dict[str, Key]
    kernel: Key | None
    alpha: Key


def pairs(
    layout: Layout,
    leaves: Leaves,
    stack_axis: StackAxis | None,
    facts: Mapping[Key, Facts] | None = None,
) -> list[Pair]:
    """Find the adapters of a tree in this layout; an empty list if it has no halves.

    A module that is not in use by the chosen slot has no adapter.

    Raises:
      ValueError: if a half is missing, or shapes do not fit. The path is named.
    """
    sites = _sites(layout, leaves)
    check_averages([site.module for site in sites])
    count = collections.Counter(site.path for site in sites)
    found = []
    for site in sites:
        # Most modules have one adapted weight, and then go by the module's path alone.
        name = site.path if count[site.path] == 1 else (*site.path, site.weight)
        known = (facts or {}).get(site.key, Facts())
        if known.slot is None or known.slot.rank:
            path = "/".join(name)
            found.append(_pair(layout, leaves, site, path, stack_axis, known))
    return found


def names(layout: Layout, leaves: Leaves) -> list[str]:
    """List the modules in which this layout finds a half, if it knows their names."""
    found = ["/".join(site.path) for site in _sites(layout, leaves)]
    return found if layout.known(found) else []


def halves(layout: Layout, leaves: Leaves) -> set[Key]:
    """Return the keys of all halves in this layout."""
    return {key for site in _sites(layout, leaves) for key in site.sides.values()}


def _sites(layout: Layout, leaves: Leaves) -> list[_Site]:
    sides = _sides(layout, leaves)
    for moment in moments(sides):
        del sides[moment]
    depth = _depth([module for module, _ in sides])
    result = []
    for (module, weight), found in sides.items():
        keys = layout.kernels(Half(module, weight, ""))
        beside = (*next(iter(found.values()))[:-1], layout.leaf_alpha)
        # A tree of factors alone has no kernels, and Orbax's placeholder for an unread
        # leaf has no shape.
        kernels = (x for x in keys if hasattr(leaves.get(x), "shape"))
        result.append(
            _Site(
                path=layout.path(module[depth:]),
                key=module,
                module=module[depth:],
                weight=weight,
                sides=found,
                kernel=next(kernels, None),
                alpha=beside if beside in leaves else (),
            )
        )
    return result


def _sides(layout: Layout, leaves: Leaves) -> dict[ModuleWeight, dict[str, Key]]:
    """Return the keys of the halves by module and weight, then by side."""
    sides: dict[ModuleWeight, dict[str, Key]] = {}
    for key, leaf in leaves.items():
        half = layout.half(key)
        if half and hasattr(leaf, "shape") and not is_optimizer(key):
            sides.setdefault((half.module, half.weight), {})[half.side] = key
    return sides


def _depth(modules: Sequence[Key]) -> int:
    """Count the outer collections common to all modules, to leave them out of paths."""
    depth = 0
    while len(firsts := {x[depth : depth + 1] for x in modules}) == 1:
        (first,) = firsts
        if not first or first[0] not in _COLLECTIONS:
            break
        depth += 1
    return depth


def _pair(
    layout: Layout,
    leaves: Leaves,
    site: _Site,
    path: str,
    stack_axis: StackAxis | None,
    facts: Facts,
) -> Pair:
    if len(site.sides) == 1:
        (key,) = site.sides.values()
        raise ValueError(
            f"'{path}' has the factor '{key[-1]}' alone: its other half is missing."
        )
    stored = [tuple(leaves[site.sides[side]].shape) for side in "ab"]
    shapes = viewed(facts.slot, stored[0], stored[1])
    kernel = None if site.kernel is None else tuple(leaves[site.kernel].shape)
    found = axes.reading(
        path,
        *shapes,
        kernel,
        stack_axis,
        flat=layout.flat,
        torch=layout.torch,
        known=facts.axes,
    )
    parts = layout.parts(path)
    if parts:
        _check_parts(path, parts, shapes[1], found)
    return Pair(
        path=path,
        module="/".join(site.module),
        a=site.sides["a"],
        b=site.sides["b"],
        axes=found,
        shapes=shapes,
        parts=parts,
        alpha=site.alpha,
        scale=facts.scale,
        slot=facts.slot,
    )


def _check_parts(
    path: str, parts: tuple[str, ...], b: tuple[int, ...], found: axes.Axes
) -> None:
    outputs = [n for role, n in zip(found.b, b, strict=True) if role == "n"]
    if len(outputs) < 2 or outputs[0] != len(parts):
        raise ValueError(
            f"'{path}' is a fused projection of {', '.join(parts)}, which cannot be "
            f"split: b {list(b)}, expected {len(parts)} on its first output axis."
        )
