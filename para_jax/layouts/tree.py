"""Adapters taken out of a tree, and put back into it. Traced, but for the checks."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter, check_pair, ordered
from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.padding import pad
from para_jax.layouts.axes import StackAxis
from para_jax.layouts.layout import Layout, Leaves, pairs
from para_jax.layouts.pairs import Key, Pair, members, put, take, whole
from para_jax.layouts.registry import LAYOUTS, recognise
from para_jax.layouts.scales import of_pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree in which adapters were found.

    Attributes:
      layout: The name of the layout.
      pairs: Where the adapters are.
      leaves: All leaves by key, in the order of `structure`.
      structure: The tree without its leaves.
      one_rank: Whether all modules are to have one rank, although the layout can do
        with less.

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
) -> Checkpoint:
    """Returns the adapters of a tree, and the tree to put a child back into.

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
        outside of the arrays; one number, or one a module by path.
      scale: The scale itself, instead of `alpha`.
      stack_axis: Where layers are stacked, if shapes alone do not tell.

    Raises:
      ValueError: if no layout fits or two do, a half is missing, shapes disagree, or a
        fact is needed that the tree does not hold. The module is named.
    """
    leaves, structure = flatten(tree)
    chosen, found = found_in(leaves, layout=layout, stack_axis=stack_axis)
    scales = of_pairs(chosen, found, leaves, alpha, scale)
    return take_out(
        Tree(layout=chosen.name, pairs=found, leaves=leaves, structure=structure),
        scales,
    )


def to_tree(checkpoint: Checkpoint, *, rank: int | None = None) -> Any:
    """Returns the tree that the adapters came from, with these in their places.

    Every module has its own rank; the kernels of a stack are padded to the largest of
    theirs, and so are modules that the library gives one rank to. A module that kept
    nothing has one rank of zeros, which no gradient reaches. All scales are 1 from here
    on: where the library has an alpha, run the child with `alpha` equal to the rank
    (`module_ranks`).

    What is no factor stays as it was; an optimizer's moments do not fit any more: see
    `project_moments`, or `reset_moments`. Factors are NumPy arrays where the parent's
    are, which not every library runs: qwix wants `jax.tree.map(jnp.asarray, tree)`.

    Example:
      >>> x = adapters["up"]
      >>> parent = para_jax.from_tree({"mlp": {"lora_a": x.a, "lora_b": x.b}})
      >>> child = para_jax.compress(parent, para_jax.Gamma(0.5))
      >>> jax.tree.map(np.shape, para_jax.to_tree(child))
      {'mlp': {'lora_a': (5, 2), 'lora_b': (2, 7)}}

    Args:
      checkpoint: What `from_tree` gave, or `compress` made of it in any form.
      rank: The rank to pad all modules to, for a program that knows only one; the
        largest kept is `max(module_ranks(child).values())`.

    Raises:
      ValueError: if the adapters did not come from a tree, or do not fit `rank`.
    """
    tree = tree_of(checkpoint)
    leaves = dict(tree.leaves)
    for pair, adapter in placed(checkpoint, rank):
        for key, value in put(pair, adapter).items():
            host = not isinstance(tree.leaves[key], jax.Array)
            leaves[key] = value if host else jnp.asarray(value)
        if pair.alpha:
            leaves[pair.alpha] = _like(tree.leaves[pair.alpha], adapter.rank)
    return jax.tree.unflatten(tree.structure, list(leaves.values()))


def _like(old: Any, value: int) -> Any:
    """Return a number in the form of another: of Python, NumPy or JAX."""
    if isinstance(old, int | float):
        return type(old)(value)
    new = np.full(np.shape(old), value, np.asarray(old).dtype)
    return jnp.asarray(new) if isinstance(old, jax.Array) else new


def flatten(tree: Any) -> tuple[dict[Key, Any], Any]:
    """Returns the leaves of a tree by key, and the tree without them.

    The level `value`, which NNX puts below every variable, is no part of a key.
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
    leaves: Leaves, *, layout: str | None, stack_axis: StackAxis | None
) -> tuple[Layout, tuple[Pair, ...]]:
    """Returns the layout of a tree, and where its adapters are: by shapes alone.

    Raises:
      ValueError: as `from_tree`.
    """
    chosen = recognise(leaves, layout=layout, stack_axis=stack_axis)
    return chosen, tuple(pairs(chosen, leaves, stack_axis))


def take_out(tree: Tree, scales: Mapping[str, float]) -> Checkpoint:
    """Returns the adapters of a tree whose pairs are known, with their scales by path.

    Raises:
      ValueError: if a pair is no adapter, such as one that is not floating point.
    """
    found: dict[str, Adapter] = {}
    for pair in tree.pairs:
        a, b = tree.leaves[pair.a], tree.leaves[pair.b]
        found |= take(pair, a, b, scales[pair.path])
    adapters = {path: found[path] for path in ordered(found)}
    for path, adapter in adapters.items():
        check_pair(path, adapter)
    return Checkpoint(adapters=adapters, layers=_windows(tree), tree=tree)


def _windows(tree: Tree) -> dict[str, Layer]:
    """Returns the kind of the modules whose factors are those of a convolution."""
    found = {}
    for pair in tree.pairs:
        if pair.axes.is_window:
            sizes = zip(pair.axes.a, pair.shapes[0], strict=True)
            window = tuple(n for role, n in sizes if role == "m")
            found[pair.path] = Layer(kind="conv", window=window)
    return found


def tree_of(checkpoint: Checkpoint) -> Tree:
    """Returns the tree that adapters came from.

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
    """Returns what goes into each place, the modules of one rank padded to it."""
    tree = tree_of(checkpoint)
    if not checkpoint.adapters:
        raise ValueError(
            "No module has an adapter left: all are cut, or zero. Keep at least one "
            "rank of one that is not zero."
        )
    known = {name for pair in tree.pairs for name in members(pair)}
    if unknown := sorted(checkpoint.adapters.keys() - known):
        raise ValueError(
            f"'{unknown[0]}' is no adapter of the tree, which has '{min(known)}', ... "
            "Rename the adapters back (para_jax.names.from_hf)."
        )
    found = {
        pair: whole(pair, checkpoint.adapters, tree.leaves[pair.a].dtype)
        for pair in tree.pairs
    }
    together = LAYOUTS[tree.layout].one_rank or tree.one_rank or rank is not None
    rooms: dict[str, int] = {}
    for pair, x in found.items():
        room = "" if together else pair.module
        rooms[room] = max(rooms.get(room, rank or 1), x.rank)
    if rank is not None and rooms[""] > rank:
        raise ValueError(f"A module has rank {rooms['']}, above {rank}.")
    return [
        (pair, _padded(pair, x, rooms["" if together else pair.module]))
        for pair, x in found.items()
    ]


def _padded(pair: Pair, adapter: Adapter, rank: int) -> Adapter:
    one = np.zeros((), adapter.a.dtype)  # Only the shapes count.
    like = Adapter(
        a=np.broadcast_to(one, (*adapter.a.shape[:-1], rank)),
        b=np.broadcast_to(one, (*adapter.stack, rank, adapter.outputs)),
    )
    return pad({pair.path: adapter}, like={pair.path: like})[pair.path]
