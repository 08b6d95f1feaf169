"""Take the adapters out of a whole tree, and put a child back into it.

Both directions are traceable under `jit`: checks use keys and shapes alone. Of a tree
with several adapters, the ranks of the slots are read on the host.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter, check_pair, ordered
from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.padding import to_rank
from para_jax.layouts.axes import StackAxis
from para_jax.layouts.layout import Layout, Leaves, pairs
from para_jax.layouts.pairs import Key, Pair, members, put, take, whole
from para_jax.layouts.registry import LAYOUTS, recognise
from para_jax.layouts.scales import of_pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree with adapters, as `from_tree` found them.

    Attributes:
      layout: The name of the layout.
      pairs: The places of the adapters.
      leaves: All leaves by key, in the order of `structure`.
      structure: The tree without its leaves.
      one_rank: Whether to pad all modules to one rank, although the layout does not
        require it.

    Example:
      >>> x = adapters["up"]  # Named as by flax.nnx, which has no alpha.
      >>> para_jax.from_tree({"mlp": {"lora_a": x.a, "lora_b": x.b}}).tree.layout
      'nnx'
    """

    layout: str
    pairs: tuple[Pair, ...]
    leaves: Mapping[Key, Any]
    structure: Any
    one_rank: bool = False


def from_tree(
    tree: Any,
    *,
    layout: str | None = None,
    alpha: float | Mapping[str, float] | None = None,
    scale: float | None = None,
    stack_axis: StackAxis | None = None,
    slot: int | None = None,
) -> Checkpoint:
    """Return the adapters of a tree, with the tree to put a child back into.

    For nested dicts made by `to_params`, `from_params` is the shorter way: it keeps no
    tree, and its `scale` defaults to 1. Here the layout `linen` reads such dicts inside
    of a larger tree, and needs `scale` or `alpha`.

    Example:
      >>> x = adapters["up"]
      >>> params = {"mlp": {"lora_a": x.a, "lora_b": x.b, "kernel": np.ones((5, 7))}}
      >>> parent = para_jax.from_tree(params)
      >>> parent.tree.layout, list(parent.adapters)
      ('nnx', ['mlp'])

    Args:
      tree: Parameters or a state with LoRA factors, with or without the base weights.
      layout: A name in `LAYOUTS`; recognised if left out.
      alpha: The numerator of the scale `alpha / r`, for a library that keeps it
        outside of the arrays; one number, or one per module by path.
      scale: The scale itself, instead of `alpha`.
      stack_axis: The axis on which layers are stacked, if shapes alone do not tell.
      slot: The number of the adapter to take, in a tree that holds several (SkyRL's
        tx). `to_tree` puts the child into the same slot; the others stay.

    Raises:
      ValueError: if no layout fits or two do, a half is missing, shapes disagree, or
        the tree lacks a fact that no argument gives. The module is named.
    """
    # True is 1 to Python.
    if slot is not None and type(slot) is not int:
        raise ValueError(f"slot={slot!r}: expected a whole number.")
    leaves, structure = flatten(tree)
    chosen, found = found_in(
        leaves, layout=layout, stack_axis=stack_axis, tree=tree, slot=slot
    )
    scales = of_pairs(chosen, found, leaves, alpha, scale)
    return take_out(
        Tree(layout=chosen.name, pairs=found, leaves=leaves, structure=structure),
        scales,
    )


def to_tree(checkpoint: Checkpoint, *, rank: int | None = None) -> Any:
    """Return the parent's tree with the adapters of a child in their places.

    Every module has its own rank. The kernels of a stack are padded to their largest
    rank, and all modules are if the library runs one rank. A module that kept nothing
    has one rank of zeros, which no gradient reaches. All scales are 1 in the result: if
    the library has an alpha, run the child with `alpha` equal to the rank
    (`module_ranks`).

    All other leaves stay the same, so an optimizer's moments no longer fit: see
    `project_moments`, or `reset_moments`. Factors are NumPy arrays if the parent's are.
    Not every library runs those: qwix needs `jax.tree.map(jnp.asarray, tree)`.

    Example:
      >>> x = adapters["up"]
      >>> parent = para_jax.from_tree({"mlp": {"lora_a": x.a, "lora_b": x.b}})
      >>> child = para_jax.compress(parent, para_jax.Gamma(0.5))
      >>> jax.tree.map(np.shape, para_jax.to_tree(child))
      {'mlp': {'lora_a': (5, 2), 'lora_b': (2, 7)}}

    Args:
      checkpoint: The result of `from_tree`, or a child that `compress` made from it.
      rank: The rank to pad all modules to, for a program with one rank; the largest
        kept is `max(module_ranks(child).values())`.

    Raises:
      ValueError: if the adapters did not come from a tree, or do not fit `rank`.
    """
    tree = tree_of(checkpoint)
    leaves = dict(tree.leaves)
    for pair, adapter in placed(checkpoint, rank):
        for key, value in put(pair, adapter, leaves).items():
            host = not isinstance(tree.leaves[key], jax.Array)
            leaves[key] = value if host else jnp.asarray(value)
        # The scale is in the factors now, so `alpha / r` must be 1.
        if pair.alpha:
            leaves[pair.alpha] = _like(tree.leaves[pair.alpha], adapter.rank)
    new = jax.tree.unflatten(tree.structure, list(leaves.values()))
    return LAYOUTS[tree.layout].refit(new)


def _like(old: Any, value: int) -> Any:
    """Return a number in the form of another: of Python, NumPy or JAX."""
    if isinstance(old, int | float):
        return type(old)(value)
    new = np.full(np.shape(old), value, np.asarray(old).dtype)
    return jnp.asarray(new) if isinstance(old, jax.Array) else new


def flatten(tree: Any) -> tuple[dict[Key, Any], Any]:
    """Return the leaves of a tree by key, and the tree without them.

    Keys leave out the level `value`, which NNX puts below every variable.
    """
    found, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {_key(path): value for path, value in found}
    if len(leaves) < len(found):
        raise ValueError("Two leaves of the tree have one path.")
    return leaves, structure


def _key(path: tuple[Any, ...]) -> Key:
    # One key at a time: a key of MaxText's has a dot, one of a user's may have a slash.
    parts = [jax.tree_util.keystr((x,), simple=True) for x in path]
    return tuple(parts[:-1] if len(parts) > 1 and parts[-1] == "value" else parts)


def found_in(
    leaves: Leaves,
    *,
    layout: str | None,
    stack_axis: StackAxis | None,
    tree: Any = None,
    slot: int | None = None,
) -> tuple[Layout, tuple[Pair, ...]]:
    """Find the layout of a tree and the places of its adapters, by shapes alone.

    Args:
      leaves: The leaves by key.
      layout: As for `from_tree`.
      stack_axis: As for `from_tree`.
      tree: The tree itself, if it is in memory: its classes may hold facts.
      slot: As for `from_tree`.

    Raises:
      ValueError: as `from_tree`.
    """
    chosen = recognise(leaves, layout=layout, stack_axis=stack_axis)
    if slot is not None and not chosen.slots:
        raise ValueError(
            f"slot={slot}: a tree of {chosen.name} holds one adapter. Leave it out."
        )
    facts = chosen.facts(tree, leaves, slot)
    return chosen, tuple(pairs(chosen, leaves, stack_axis, facts))


def take_out(tree: Tree, scales: Mapping[str, float]) -> Checkpoint:
    """Return the adapters at the known pairs of a tree, with their scales by path.

    Raises:
      ValueError: if a pair is not an adapter, such as one that is not floating point.
    """
    found: dict[str, Adapter] = {}
    for pair in tree.pairs:
        a, b = tree.leaves[pair.a], tree.leaves[pair.b]
        found |= take(pair, a, b, scales[pair.path])
    adapters = {path: found[path] for path in ordered(found)}
    for path, adapter in adapters.items():
        check_pair(path, adapter)
    return Checkpoint(adapters=adapters, layers=_layers(tree), tree=tree)


def _layers(tree: Tree) -> dict[str, Layer]:
    """Return the kinds of the layers that are not dense, by path."""
    found = {}
    for pair in tree.pairs:
        layer = LAYOUTS[tree.layout].layer(pair)
        if pair.axes.is_window:
            sizes = zip(pair.axes.a, pair.shapes[0], strict=True)
            window = tuple(n for role, n in sizes if role == "m")
            layer = Layer(kind="conv", window=window)
        if layer != Layer():
            found[pair.path] = layer
    return found


def tree_of(checkpoint: Checkpoint) -> Tree:
    """Return the tree from which a checkpoint's adapters were taken.

    Raises:
      ValueError: if they did not come from one.
    """
    if checkpoint.tree is None:
        raise ValueError(
            "These adapters did not come from a tree: use para_jax.to_params for "
            "nested dicts of a and b."
        )
    return checkpoint.tree


def placed(checkpoint: Checkpoint, rank: int | None) -> list[tuple[Pair, Adapter]]:
    """Return each pair's new adapter, padded where several modules share one rank.

    Args:
      checkpoint: A child of a tree.
      rank: As for `to_tree`.

    Raises:
      ValueError: as `to_tree`.
    """
    tree = tree_of(checkpoint)
    _check_children(tree, checkpoint)
    found = {
        pair: whole(pair, checkpoint.adapters, tree.leaves[pair.a].dtype)
        for pair in tree.pairs
    }
    one_rank = LAYOUTS[tree.layout].one_rank or tree.one_rank or rank is not None
    # Pairs of one module share a rank in any layout: the library looks it up once.
    groups = {pair: "" if one_rank else pair.module for pair in found}
    ranks: dict[str, int] = {}
    for pair, adapter in found.items():
        group = groups[pair]
        ranks[group] = max(ranks.get(group, rank or 1), adapter.rank)
    if rank is not None and ranks[""] > rank:
        raise ValueError(f"A module has rank {ranks['']}, above {rank}.")
    return [(pair, to_rank(x, ranks[groups[pair]])) for pair, x in found.items()]


def _check_children(tree: Tree, checkpoint: Checkpoint) -> None:
    """Raise ValueError unless there are adapters, and each has a place in the tree."""
    if not checkpoint.adapters:
        raise ValueError(
            "No module has an adapter left: all are cut, or zero. Keep at least one "
            "rank of one that is not zero."
        )
    known = {name for pair in tree.pairs for name in members(pair)}
    if unknown := sorted(checkpoint.adapters.keys() - known):
        raise ValueError(
            f"'{unknown[0]}' is not an adapter of the tree, which has '{min(known)}', "
            "... Rename the adapters back (para_jax.names.from_hf)."
        )
