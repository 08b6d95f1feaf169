"""Orbax checkpoints of other libraries' trees, and children in the same form.

The layout is recognised by the shapes alone, before anything is read, so adapters can
be read from a large checkpoint without its base weights. A child's checkpoint has its
parent's tree. The places of its adapters, all of scale 1, are in its custom metadata.
Runs on the host.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from para_jax import layouts
from para_jax._adapters.adapter import Adapter
from para_jax._adapters.checkpoint import Checkpoint
from para_jax.formats import record
from para_jax.formats.format import Hints
from para_jax.formats.orbax import storage as orbax_io
from para_jax.layouts.axes import Axes
from para_jax.layouts.copies import is_optimizer
from para_jax.layouts.pairs import Key, Pair
from para_jax.layouts.scales import of_pairs
from para_jax.layouts.tree import flatten, found_in, take_out, tree_of

KEY = "para_jax"
VERSION = 1

_LEFT_OUT = orbax_io.PLACEHOLDER


def load(
    folder: pathlib.Path,
    form: Any,
    metadata: Mapping[str, Any],
    hints: Hints,
) -> Checkpoint:
    """Read the adapters in another library's checkpoint.

    The state of an optimizer is left out: its shapes are those of the parent's factors.

    Raises:
      ValueError: as `para_jax.from_tree`.
    """
    shapes, _ = flatten(form)
    chosen, pairs = found_in(shapes, layout=hints.layout, stack_axis=hints.stack_axis)
    wanted = _wanted(shapes, pairs, adapters_only=hints.adapters_only)
    found = _read(folder, form, wanted, {}, adapters_only=hints.adapters_only)
    leaves, structure = flatten(found)
    alpha = hints.alpha
    # The user's word has precedence over the metadata.
    if chosen.alpha and alpha is None and hints.scale is None:
        alpha = _alpha(metadata)
    scales = of_pairs(chosen, pairs, leaves, alpha, hints.scale)
    tree = layouts.Tree(
        layout=chosen.name, pairs=pairs, leaves=leaves, structure=structure
    )
    return dataclasses.replace(take_out(tree, scales), config=dict(metadata))


def _alpha(metadata: Mapping[str, Any]) -> float | None:
    """Return MaxText's alpha from the metadata of a checkpoint."""
    lora = metadata.get("lora")
    return lora.get("lora_alpha") if isinstance(lora, Mapping) else None


def save(checkpoint: Checkpoint, folder: pathlib.Path) -> Checkpoint:
    """Write adapters into their original tree; return the result.

    Raises:
      OSError: if the disk is full or the folder cannot be written.
      ValueError: as `para_jax.to_tree`, or if the tree needs its library to be saved.
    """
    _check_plain(tree_of(checkpoint))
    tree = layouts.to_tree(checkpoint)
    written = _written(checkpoint, tree)
    ranks = layouts.module_ranks(checkpoint)
    metadata = dict(checkpoint.config)
    if isinstance(metadata.get("lora"), Mapping):
        # MaxText builds its model with one rank, and divides alpha by it.
        most = max(ranks.values())
        metadata["lora"] = {**metadata["lora"], "lora_rank": most, "lora_alpha": most}
    metadata[KEY] = {
        "version": VERSION,
        "layout": written.layout,
        "pairs": [_to_json(pair) for pair in written.pairs],
        "ranks": ranks,
        "residual": checkpoint.residual,
        "facts": record.to_json(checkpoint),
    }
    orbax_io.write(folder, tree, metadata)
    return dataclasses.replace(checkpoint, adapters=_adapters(written), tree=written)


def _check_plain(tree: layouts.Tree) -> None:
    """Raise ValueError if more than arrays and their keys make up the adapters."""
    if any(pair.scale is not None for pair in tree.pairs):
        raise ValueError(
            f"Orbax cannot hold a tree of {tree.layout} as it was read, with its "
            "classes or its other adapters. Put the child back (para_jax.to_tree) and "
            "save that by the library itself, or choose another format, such as peft."
        )


def load_own(
    folder: pathlib.Path,
    form: Any,
    metadata: Mapping[str, Any],
    known: Mapping[str, np.ndarray],
    *,
    adapters_only: bool,
) -> Checkpoint:
    """Read a checkpoint written by `save`.

    Raises:
      KeyError: if the metadata or the tree is not as it was written; ValueError and
        TypeError too.
    """
    own = metadata[KEY]
    pairs = tuple(_pair(x) for x in own["pairs"])
    shapes, _ = flatten(form)
    wanted = _wanted(shapes, pairs, adapters_only=adapters_only)
    tree = _read(folder, form, wanted, known, adapters_only=adapters_only)
    leaves, structure = flatten(tree)
    found = record.from_json(own["facts"])
    new = layouts.Tree(
        layout=own["layout"], pairs=pairs, leaves=leaves, structure=structure
    )
    return dataclasses.replace(
        take_out(new, {pair.path: 1.0 for pair in pairs}),
        adapters=_adapters(new),
        absent=found.absent,
        provenance=found.provenance,
        residual=own["residual"],
        config={name: x for name, x in metadata.items() if name != KEY},
    )


def _adapters(tree: layouts.Tree) -> dict[str, Adapter]:
    """Return the adapters of a child's tree, without their padding.

    Padding are components used by other parts of a fused projection, zeros up to the
    rank of other modules, and whole modules of zeros. The kernels of a stack keep one
    rank.
    """
    # `to_tree` has folded all scales into the factors.
    every = take_out(tree, {pair.path: 1.0 for pair in tree.pairs}).adapters
    return {path: x for path, y in every.items() if (x := _used(y)).rank}


def _used(adapter: Adapter) -> Adapter:
    a, b = np.asarray(adapter.a), np.asarray(adapter.b)
    still = tuple(range(len(adapter.stack)))
    # The kernels of a stack share their rank, so a component is used if any uses it.
    used = a.any(axis=(*still, -2)) & b.any(axis=(*still, -1))
    if used.all():
        return adapter
    return dataclasses.replace(adapter, a=a[..., used], b=b[..., used, :])


def _written(checkpoint: Checkpoint, tree: Any) -> layouts.Tree:
    """Locate the adapters in a tree made by `to_tree`."""
    leaves, structure = flatten(tree)
    old = tree_of(checkpoint)
    # A child has its parent's keys, and ranks of its own.
    pairs = tuple(
        dataclasses.replace(x, shapes=(leaves[x.a].shape, leaves[x.b].shape))
        for x in old.pairs
    )
    return dataclasses.replace(old, pairs=pairs, leaves=leaves, structure=structure)


def _wanted(
    shapes: Mapping[Key, Any], pairs: tuple[Pair, ...], *, adapters_only: bool
) -> set[Key]:
    """Return the keys of the leaves to read."""
    adapters = {key for x in pairs for key in (x.a, x.b, x.alpha)}
    if adapters_only:
        return adapters & shapes.keys()
    return {key for key in shapes if not is_optimizer(key)}


def _read(
    folder: pathlib.Path,
    form: Any,
    wanted: set[Key],
    known: Mapping[str, np.ndarray],
    *,
    adapters_only: bool,
) -> Any:
    """Read the tree of the wanted leaves."""
    shapes, structure = flatten(form)
    # Orbax needs the whole structure; it does not read the leaves of placeholders.
    kinds = [x if key in wanted else _LEFT_OUT for key, x in shapes.items()]
    tree = orbax_io.read(folder, jax.tree.unflatten(structure, kinds), known)
    return _pruned(tree, (), adapters_only=adapters_only)


def _pruned(tree: Any, key: Key, *, adapters_only: bool) -> Any:
    """Remove the unread leaves from a tree.

    `None` and empty containers are treated as leaves: they are removed from an
    optimizer's state, or if only adapters are wanted. A list with missing entries
    becomes a dict by index, so that the keys of the others do not change.
    """
    if tree is None or (isinstance(tree, list | tuple | Mapping) and not tree):
        return _LEFT_OUT if adapters_only or is_optimizer(key) else tree
    if not isinstance(tree, list | tuple | Mapping):
        return tree
    is_dict = isinstance(tree, Mapping)
    below = tree.items() if is_dict else ((str(i), x) for i, x in enumerate(tree))
    found = {
        name: _pruned(x, (*key, name), adapters_only=adapters_only) for name, x in below
    }
    kept = {name: x for name, x in found.items() if x is not _LEFT_OUT}
    if not is_dict and len(kept) == len(found):
        return list(found.values())
    return kept or _LEFT_OUT


def _to_json(pair: Pair) -> dict[str, Any]:
    """Return a pair's JSON form; `save` accepts none with a scale or a slot."""
    facts = dataclasses.asdict(pair)
    return {name: x for name, x in facts.items() if name not in ("scale", "slot")}


def _pair(saved: Mapping[str, Any]) -> Pair:
    """Parse a pair from its JSON form."""
    shapes = tuple(tuple(x) for x in saved["shapes"])
    return Pair(
        path=saved["path"],
        module=saved["module"],
        a=tuple(saved["a"]),
        b=tuple(saved["b"]),
        axes=Axes(*saved["axes"]),
        shapes=(shapes[0], shapes[1]),
        parts=tuple(saved["parts"]),
        alpha=tuple(saved["alpha"]),
    )
