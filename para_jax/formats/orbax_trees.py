"""Orbax checkpoints of other libraries' trees, and children in the same form. Host.

The layout is found by the shapes alone, before anything is read, so the adapters can
be taken out of a large checkpoint without its base weights. A child's checkpoint has
the tree that its parent had; where its adapters are, and that their scales are 1, is
in its custom metadata.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from para_jax import layouts
from para_jax.adapters import Checkpoint
from para_jax.formats import facts, orbax_io
from para_jax.layouts.axes import Axes
from para_jax.layouts.layout import is_optimizer
from para_jax.layouts.pairs import Key, Pair
from para_jax.layouts.tree import flatten, found_in, take_out, tree_of

KEY = "para_jax"
VERSION = 1


class Hints(NamedTuple):
    """What a user says of a checkpoint whose arrays do not tell.

    Attributes:
      layout: As for `para_jax.from_tree`, as the next three.
      alpha: The numerator of the scale.
      scale: The scale.
      stack_axis: Where layers are stacked.
      adapters_only: Whether to leave all leaves unread that are no adapters.
    """

    layout: str | None = None
    alpha: float | None = None
    scale: float | None = None
    stack_axis: layouts.StackAxis | None = None
    adapters_only: bool = False


def load(
    folder: pathlib.Path,
    form: Mapping[str, Any],
    metadata: Mapping[str, Any],
    hints: Hints,
) -> Checkpoint:
    """Returns the adapters in another library's checkpoint.

    The state of an optimizer is left out: it is of the parent's factors.

    Raises:
      ValueError: as `para_jax.from_tree`.
    """
    shapes, _ = flatten(form)
    _, pairs = found_in(shapes, layout=hints.layout, stack_axis=hints.stack_axis)
    wanted = _wanted(shapes, pairs, adapters_only=hints.adapters_only)
    tree = _read(folder, form, wanted, {})
    alpha = hints.alpha
    if hints.layout in (None, *_MAXTEXT) and hints.scale is None and alpha is None:
        alpha = (metadata.get("lora") or {}).get("lora_alpha")
    checkpoint = layouts.from_tree(
        tree,
        layout=hints.layout,
        alpha=alpha,
        scale=hints.scale,
        stack_axis=hints.stack_axis,
    )
    return dataclasses.replace(checkpoint, config=dict(metadata))


_MAXTEXT = ("maxtext", "maxtext-qwix")


def save(checkpoint: Checkpoint, folder: pathlib.Path) -> Checkpoint:
    """Writes adapters into the tree that they came from, and returns what is written.

    Raises:
      OSError: if the disk is full or the folder cannot be written.
      ValueError: as `para_jax.to_tree`.
    """
    tree = layouts.to_tree(checkpoint)
    written = _written(checkpoint, tree)
    ranks = layouts.module_ranks(checkpoint)
    metadata = dict(checkpoint.config)
    if isinstance(metadata.get("lora"), Mapping):
        most = max(ranks.values())
        metadata["lora"] = {**metadata["lora"], "lora_rank": most, "lora_alpha": most}
    metadata[KEY] = {
        "version": VERSION,
        "layout": written.layout,
        "pairs": [dataclasses.asdict(pair) for pair in written.pairs],
        "ranks": ranks,
        "residual": checkpoint.residual,
        "facts": facts.to_json(checkpoint),
    }
    orbax_io.write(folder, tree, metadata)
    found = take_out(written, {pair.path: 1.0 for pair in written.pairs})
    return dataclasses.replace(checkpoint, adapters=found.adapters, tree=written)


def reload(
    folder: pathlib.Path,
    form: Mapping[str, Any],
    metadata: Mapping[str, Any],
    known: Mapping[str, np.ndarray],
    *,
    adapters_only: bool,
) -> Checkpoint:
    """Returns what `save` wrote.

    Raises:
      KeyError: if the metadata or the tree is not as it was written; ValueError and
        TypeError too.
    """
    own = metadata[KEY]
    pairs = tuple(_pair(x) for x in own["pairs"])
    shapes, _ = flatten(form)
    wanted = _wanted(shapes, pairs, adapters_only=adapters_only)
    tree = _read(folder, form, wanted, known)
    leaves, structure = flatten(tree)
    found = facts.from_json(own["facts"])
    checkpoint = take_out(
        layouts.Tree(
            layout=own["layout"], pairs=pairs, leaves=leaves, structure=structure
        ),
        {pair.path: 1.0 for pair in pairs},
    )
    return dataclasses.replace(
        checkpoint,
        absent=found.absent,
        provenance=found.provenance,
        residual=own["residual"],
        config={name: x for name, x in metadata.items() if name != KEY},
    )


def _written(checkpoint: Checkpoint, tree: Any) -> layouts.Tree:
    """Returns where the adapters are in a tree that `to_tree` made."""
    leaves, structure = flatten(tree)
    old = tree_of(checkpoint)
    pairs = tuple(
        dataclasses.replace(x, shapes=(leaves[x.a].shape, leaves[x.b].shape))
        for x in old.pairs
    )
    return dataclasses.replace(old, pairs=pairs, leaves=leaves, structure=structure)


def _wanted(
    shapes: Mapping[Key, Any], pairs: tuple[Pair, ...], *, adapters_only: bool
) -> set[Key]:
    """Returns the keys of the leaves to read."""
    adapters = {key for x in pairs for key in (x.a, x.b, x.alpha)}
    if adapters_only:
        return adapters & shapes.keys()
    return {key for key in shapes if not is_optimizer(key)}


def _read(
    folder: pathlib.Path, form: Any, wanted: set[Key], known: Mapping[str, np.ndarray]
) -> Any:
    """Returns the tree of the wanted leaves."""
    shapes, structure = flatten(form)
    kinds = [np.ndarray if x in wanted else orbax_io.PLACEHOLDER for x in shapes]
    return _pruned(orbax_io.read(folder, jax.tree.unflatten(structure, kinds), known))


def _pruned(tree: Any) -> Any:
    """Returns nested dicts without the leaves that were not read."""
    if not isinstance(tree, Mapping):
        return tree
    found = {name: _pruned(x) for name, x in tree.items()}
    empty = (orbax_io.PLACEHOLDER, {})
    return {
        name: x
        for name, x in found.items()
        if isinstance(x, np.ndarray) or x not in empty or tree[name] == x == {}
    }


def _pair(saved: Mapping[str, Any]) -> Pair:
    """Returns a pair from its JSON form."""
    shapes = tuple(tuple(x) for x in saved["shapes"])
    keys = {name: tuple(saved[name]) for name in ("a", "b", "parts", "alpha")}
    return Pair(
        path=saved["path"],
        module=saved["module"],
        axes=Axes(*saved["axes"]),
        shapes=(shapes[0], shapes[1]),
        **keys,
    )
