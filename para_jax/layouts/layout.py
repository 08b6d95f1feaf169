"""What a library's LoRA trees look like: one record of plain functions each. Host."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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


_OPTIMIZERS = {"opt_state", "optimizer_state", "optimizer"}
_COLLECTIONS = ("params", "lora", "model_params")


class _Site(NamedTuple):
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
    sites = list(_sites(layout, leaves))
    paths = [layout.path(_bare(site.module, sites)) for site in sites]
    found = []
    for site, path in zip(sites, paths, strict=True):
        name = path if paths.count(path) == 1 else (*path, site.weight)
        found.append(_pair(layout, leaves, site, "/".join(name), stack_axis, sites))
    return found


def names(layout: Layout, leaves: Leaves) -> list[str]:
    """Returns the modules in which this layout finds a half, or nothing."""
    sites = list(_sites(layout, leaves))
    found = ["/".join(layout.path(_bare(site.module, sites))) for site in sites]
    return found if layout.known(found) else []


def is_optimizer(key: Key) -> bool:
    """Returns whether a leaf is an optimizer's: its moments are named as factors."""
    return not _OPTIMIZERS.isdisjoint(key)


def _sites(layout: Layout, leaves: Leaves) -> Iterator[_Site]:
    sides: dict[tuple[Key, str], dict[str, Key]] = {}
    for key in leaves:
        if not is_optimizer(key) and (half := layout.half(key)):
            sides.setdefault((half.module, half.weight), {})[half.side] = key
    for (module, weight), found in sides.items():
        keys = layout.kernels(Half(module, weight, ""))
        beside = (*next(iter(found.values()))[:-1], layout.leaf_alpha)
        yield _Site(
            module=module,
            weight=weight,
            sides=found,
            kernel=next((key for key in keys if key in leaves), None),
            alpha=beside if beside in leaves else (),
        )


def _bare(module: Key, sites: Sequence[_Site]) -> Key:
    """Returns a module's key without the collections that all of them lie in."""
    depth = 0
    while len(firsts := {x.module[depth : depth + 1] for x in sites}) == 1:
        (first,) = firsts
        if not first or first[0] not in _COLLECTIONS:
            break
        depth += 1
    return module[depth:]


def _pair(
    layout: Layout,
    leaves: Leaves,
    site: _Site,
    path: str,
    stack_axis: StackAxis | None,
    sites: Sequence[_Site],
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
        module="/".join(_bare(site.module, sites)),
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
