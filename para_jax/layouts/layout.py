"""What a library's LoRA trees look like: one record of plain functions each. Host."""

import collections
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from para_jax.layouts import axes
from para_jax.layouts.axes import StackAxis
from para_jax.layouts.pairs import Key, Pair

Leaves = Mapping[Key, Any]
"""The leaves of a tree by key: arrays, or anything else that has a shape."""


class Half(NamedTuple):
    """What the key of a leaf says, if it is half an adapter.

    Attributes:
      module: The key of the module.
      weight: The name of the adapted weight in it, where the key tells.
      side: `a` for the input side, `b` for the output side.
    """

    module: Key
    weight: str
    side: str


class Layout(NamedTuple):
    """How one library names, places and scales LoRA factors.

    Attributes:
      name: What users call it.
      half: Reads the key of a leaf.
      kernels: The keys at which the base weight of a module may be.
      alpha: The argument to give, and where the user finds it, if the scale is outside
        of the arrays. Empty: the library has no scale, `delta = a @ b`.
      path: The module's path as the adapter's name, without what the library adds.
      parts: The names of what a fused projection joins, by its path.
      flat: Whether both sides are flattened to one axis.
      one_rank: Whether the library runs one rank for all modules.
      known: Whether these paths are this library's, where only names tell it from
        the layout that it refines.
      refines: The layout whose trees these are too.
      leaf_alpha: The name of a leaf beside the factors that holds alpha.
    """

    name: str
    half: Callable[[Key], Half | None]
    kernels: Callable[[Half], Sequence[Key]]
    alpha: str = ""
    path: Callable[[Key], Key] = lambda module: module
    parts: Callable[[str], tuple[str, ...]] = lambda path: ()
    flat: bool = False
    one_rank: bool = False
    known: Callable[[Sequence[str]], bool] = lambda paths: True
    refines: str = ""
    leaf_alpha: str = ""


_OPTIMIZERS = {"opt", "optim", "opt_state", "optimizer_state", "optimizer", "tx"}
_MOMENTS = {"mu", "nu", "trace", "nu_max", "sum_of_squares", "acc_grads"}
_AVERAGES = re.compile(r"(.*_)?ema(_.*)?")
_COLLECTIONS = ("params", "lora", "model_params")


class _Site(NamedTuple):
    path: Key
    module: Key
    weight: str
    sides: dict[str, Key]
    kernel: Key | None
    alpha: Key


def pairs(layout: Layout, leaves: Leaves, stack_axis: StackAxis | None) -> list[Pair]:
    """Returns the adapters of a tree, in this layout; none if it has no halves.

    Raises:
      ValueError: if a half is missing, or shapes do not fit. The path is named.
    """
    sites = _sites(layout, leaves)
    _check_averages(sites)
    count = collections.Counter(site.path for site in sites)
    found = []
    for site in sites:
        name = site.path if count[site.path] == 1 else (*site.path, site.weight)
        found.append(_pair(layout, leaves, site, "/".join(name), stack_axis))
    return found


def names(layout: Layout, leaves: Leaves) -> list[str]:
    """Returns the modules in which this layout finds a half, or nothing."""
    found = ["/".join(site.path) for site in _sites(layout, leaves)]
    return found if layout.known(found) else []


def halves(layout: Layout, leaves: Leaves) -> set[Key]:
    """Returns the keys of the leaves that this layout takes for halves."""
    return {key for site in _sites(layout, leaves) for key in site.sides.values()}


def is_optimizer(key: Key) -> bool:
    """Returns whether a leaf is an optimizer's: its moments are named as factors."""
    return not _OPTIMIZERS.isdisjoint(key[:-1])


def _sites(layout: Layout, leaves: Leaves) -> list[_Site]:
    sides: dict[tuple[Key, str], dict[str, Key]] = {}
    for key, leaf in leaves.items():
        half = layout.half(key)
        if half and hasattr(leaf, "shape") and not is_optimizer(key):
            sides.setdefault((half.module, half.weight), {})[half.side] = key
    for site in _moments(sides):
        del sides[site]
    depth = _depth([module for module, _ in sides])
    result = []
    for (module, weight), found in sides.items():
        keys = layout.kernels(Half(module, weight, ""))
        beside = (*next(iter(found.values()))[:-1], layout.leaf_alpha)
        kernels = (x for x in keys if hasattr(leaves.get(x), "shape"))
        result.append(
            _Site(
                path=layout.path(module[depth:]),
                module=module[depth:],
                weight=weight,
                sides=found,
                kernel=next(kernels, None),
                alpha=beside if beside in leaves else (),
            )
        )
    return result


def _moments(sites: Collection[tuple[Key, str]]) -> list[tuple[Key, str]]:
    """Returns the sites that are moments of all the others, below a name of optax's.

    A module may have such a name too: there, it has not all the others' paths below.
    """
    others = [x for x in sites if _MOMENTS.isdisjoint(x[0])]
    ends = {(x[i:], weight) for x, weight in others for i in range(len(x) or 1)}
    below: dict[Key, list[tuple[Key, str]]] = {}
    for module, weight in sites:
        if at := [i for i, x in enumerate(module) if x in _MOMENTS]:
            below.setdefault(module[: at[0] + 1], []).append((module, weight))
    return [
        site
        for start, group in below.items()
        if len(group) == len(others)
        and all((module[len(start) :], weight) in ends for module, weight in group)
        for site in group
    ]


def _check_averages(sites: Sequence[_Site]) -> None:
    firsts = {site.module[:1]: "/".join(site.module) for site in sites}
    means = [x for x in firsts if x and _AVERAGES.fullmatch(x[0])]
    if means and len(means) < len(firsts):
        other = next(path for x, path in firsts.items() if x not in means)
        raise ValueError(
            f"'{firsts[means[0]]}' and '{other}' are two copies of a model's adapters. "
            "Give one of them alone."
        )


def _depth(modules: Sequence[Key]) -> int:
    """Returns how many collections all modules lie in, which are no part of paths."""
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
) -> Pair:
    if len(site.sides) == 1:
        (key,) = site.sides.values()
        raise ValueError(
            f"'{path}' has the factor '{key[-1]}' alone: its other half is missing."
        )
    shapes = tuple(tuple(leaves[site.sides[side]].shape) for side in "ab")
    kernel = None if site.kernel is None else tuple(leaves[site.kernel].shape)
    found = axes.reading(
        path, shapes[0], shapes[1], kernel, stack_axis, flat=layout.flat
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
        shapes=(shapes[0], shapes[1]),
        parts=parts,
        alpha=site.alpha,
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
