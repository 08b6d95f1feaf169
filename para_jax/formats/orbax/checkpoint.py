"""Orbax checkpoints: plain trees of arrays, with JSON metadata.

Adapters from another library's tree are written back as that tree (see `trees.py`).
For all others the tree is `{"lora": ..., "bias": ..., "extra": ...}`, with the result
of `para_jax.to_params` for scale 1 below `lora`. Facts that arrays cannot hold (the
scales, other kinds of layers, the configuration, the provenance) are in the custom
metadata, under `para_jax`. Runs on the host.
"""

import dataclasses
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from para_jax._adapters.adapter import check_pair
from para_jax._adapters.checkpoint import Checkpoint
from para_jax._adapters.messages import Argument, Message
from para_jax._adapters.params import from_params, nest, to_params, unnest
from para_jax.formats import record
from para_jax.formats.format import Hints
from para_jax.formats.orbax import storage as orbax_io, trees as orbax_trees
from para_jax.formats.orbax.trees import KEY, VERSION


def save(checkpoint: Checkpoint, folder: pathlib.Path) -> Checkpoint:
    """Write a checkpoint into an existing, empty folder.

    Scales are kept beside the factors, not folded in: reading gives the same bits.

    Returns:
      The checkpoint that the files should read back as.

    Raises:
      OSError: if the disk is full or the folder cannot be written.
    """
    if checkpoint.tree is not None:
        return orbax_trees.save(checkpoint, folder)
    orbax_io.write(folder, _tree(checkpoint), {KEY: _metadata(checkpoint)})
    return checkpoint


def _tree(checkpoint: Checkpoint) -> dict[str, Any]:
    # `to_params` folds scales in, which would round the factors.
    bare = {
        path: dataclasses.replace(x, scale=1.0)
        for path, x in checkpoint.adapters.items()
    }
    return {
        "lora": to_params(bare),
        "bias": nest(checkpoint.biases),
        "extra": dict(checkpoint.extra),
    }


def read_back(folder: pathlib.Path, written: Checkpoint) -> Checkpoint:
    """Load a checkpoint again, sharing the arrays of the result of `save`."""
    if written.tree is not None:
        leaves = {"/".join(x): y for x, y in written.tree.leaves.items()}
    else:
        leaves = unnest(_tree(written))
    # Orbax reads into host memory, so no other array can be shared.
    known = {x: y for x, y in leaves.items() if isinstance(y, np.ndarray)}
    return load(folder, known=known)


def load(
    folder: pathlib.Path,
    hints: Hints = Hints(),  # noqa: B008
    known: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> Checkpoint:
    """Read a checkpoint of `save`, or the adapters in another library's tree.

    Args:
      folder: The checkpoint, written by Orbax's v0 or v1 interface, or a step of a
        CheckpointManager.
      hints: For a checkpoint that `save` did not write.
      known: Arrays in memory already, see `storage.read`.

    Raises:
      ValueError: if there are no adapters in it, or a hint is needed or not wanted.
    """
    form, metadata = orbax_io.shapes(folder)
    if KEY not in metadata:
        return _foreign(folder, form, metadata, hints)
    # Our metadata leaves nothing open.
    if hints._replace(adapters_only=False) != Hints():
        name = next(x for x in Hints._fields if getattr(hints, x) is not None)
        value = getattr(hints, name)
        value = f"{value:g}" if isinstance(value, float) else value
        raise ValueError(
            Message(
                f"'{folder}' holds its own scales: leave out ",
                Argument(name, value),
                ".",
            )
        )
    own = metadata[KEY]
    # A newer version may parse, and mean something else.
    if isinstance(own, dict) and own.get("version", 0) > VERSION:
        raise ValueError(f"'{folder}' was written by a newer para_jax: update yours.")
    try:
        if "layout" in own:
            return orbax_trees.load_own(
                folder, form, metadata, known, adapters_only=hints.adapters_only
            )
        return _ours(orbax_io.read(folder, form, known), own)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{folder}' is damaged: its metadata or a part of its tree is not as it "
            f"was written ({orbax_io.first_line(error)})."
        ) from error


def _ours(tree: Mapping[str, Any], own: Mapping[str, Any]) -> Checkpoint:
    """Build the checkpoint from a tree of `save` and its metadata."""
    factors, found = from_params(tree["lora"]), record.from_json(own["facts"])
    adapters = {
        path: dataclasses.replace(
            factors[path], scale=scale, nominal=found.nominal.get(path)
        )
        for path, scale in own["scales"].items()
    }
    for path, adapter in adapters.items():
        check_pair(path, adapter)
    return Checkpoint(
        adapters=adapters,
        layers=found.layers,
        biases=unnest(tree.get("bias", {})),
        absent=found.absent,
        shared=found.shared,
        extra=tree.get("extra", {}),
        config=own["config"],
        provenance=found.provenance,
        residual=own["residual"],
        spelling=found.spelling,
    )


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the facts missing from the arrays, as plain JSON values."""
    adapters = checkpoint.adapters
    return {
        "version": VERSION,
        "scales": {path: float(x.scale) for path, x in adapters.items()},
        "ranks": {path: x.rank for path, x in adapters.items()},
        "config": dict(checkpoint.config),
        "residual": checkpoint.residual,
        "facts": record.to_json(checkpoint),
    }


def _foreign(
    folder: pathlib.Path,
    form: Any,
    metadata: Mapping[str, Any],
    hints: Hints,
) -> Checkpoint:
    # Without the scales these factors would pass for a tree of scale 1.
    if isinstance(form, Mapping) and form.keys() == {"lora", "bias", "extra"}:
        raise ValueError(
            f"'{folder}' was written by para_jax, but its metadata, which holds the "
            "scales, is gone. Copy the whole folder again."
        )
    try:
        return orbax_trees.load(folder, form, metadata, hints)
    except ValueError as error:
        raise ValueError(
            Message(
                f"Cannot read the adapters in '{folder}', which para_jax did not "
                "write: ",
                error,
            )
        ) from error
