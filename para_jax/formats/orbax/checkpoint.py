"""Orbax checkpoints: plain trees of arrays, with JSON metadata. Host.

Adapters that came out of another library's tree are written as that tree (see
`orbax_trees`). For all others the tree is `{"lora": ..., "bias": ..., "extra": ...}`;
below `lora` it is what `para_jax.to_params` gives for scale 1, which all children
have. What arrays cannot say (the scales, other kinds of layers, the configuration,
where the adapters came from) is in the custom metadata, under `para_jax`.
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
from para_jax.formats.orbax import storage as orbax_io
from para_jax.formats.orbax import trees as orbax_trees
from para_jax.formats.orbax.trees import KEY, VERSION
from para_jax.formats.orbax.trees import Hints as Hints


def save(checkpoint: Checkpoint, folder: pathlib.Path) -> Checkpoint:
    """Writes a checkpoint into an existing, empty folder.

    Scales are kept beside the factors, not folded in: what is read is what was saved.

    Returns:
      What the checkpoint should read back as.

    Raises:
      OSError: if the disk is full or the folder cannot be written.
    """
    if checkpoint.tree is not None:
        return orbax_trees.save(checkpoint, folder)
    orbax_io.write(folder, _tree(checkpoint), {KEY: _metadata(checkpoint)})
    return checkpoint


def _tree(checkpoint: Checkpoint) -> dict[str, Any]:
    bare = {
        path: dataclasses.replace(x, scale=1.0)
        for path, x in checkpoint.adapters.items()
    }
    return {
        "lora": to_params(bare),
        "bias": nest(checkpoint.biases),
        "extra": dict(checkpoint.extra),
    }


def reload(folder: pathlib.Path, written: Checkpoint) -> Checkpoint:
    """Returns what `load` returns, in the memory of what `save` returned."""
    if written.tree is not None:
        leaves = {"/".join(x): y for x, y in written.tree.leaves.items()}
    else:
        leaves = unnest(_tree(written))
    known = {x: y for x, y in leaves.items() if isinstance(y, np.ndarray)}
    return load(folder, known=known)


def load(
    folder: pathlib.Path,
    hints: Hints = Hints(),  # noqa: B008
    known: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> Checkpoint:
    """Returns what `save` wrote, or the adapters in another library's tree.

    Args:
      folder: The checkpoint, written by Orbax's v0 or v1 interface, or a step of a
        CheckpointManager.
      hints: For a checkpoint that `save` did not write.
      known: What is in memory already, see `orbax_io.read`.

    Raises:
      ValueError: if there are no adapters in it, or a hint is needed or not wanted.
    """
    form, metadata = orbax_io.shapes(folder)
    if KEY not in metadata:
        return _foreign(folder, form, metadata, hints)
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
    if isinstance(own, dict) and own.get("version", 0) > VERSION:
        raise ValueError(f"'{folder}' was written by a newer para_jax: update yours.")
    try:
        if "layout" in own:
            return orbax_trees.reload(
                folder, form, metadata, known, adapters_only=hints.adapters_only
            )
        return _ours(orbax_io.read(folder, form, known), own)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{folder}' is damaged: its metadata or a part of its tree is not as it "
            f"was written ({orbax_io.first_line(error)})."
        ) from error


def _ours(tree: Mapping[str, Any], own: Mapping[str, Any]) -> Checkpoint:
    """Returns the checkpoint that `save` wrote."""
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
    """Returns what the arrays do not say, as plain JSON values."""
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
