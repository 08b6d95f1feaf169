"""Orbax checkpoints: plain trees of arrays, with JSON metadata. Host.

The tree is `{"lora": ..., "bias": ..., "extra": ...}`; below `lora` it is what
`para_jax.to_params` gives for scale 1, which all children have. What arrays cannot say
(the scales, other kinds of layers, the configuration, where the adapters came from) is
in the checkpoint's custom metadata, under `para_jax`.

Reading asks for NumPy arrays of whatever shapes the checkpoint has, so it works for
any ranks, and for a checkpoint that other devices saved.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from para_jax.adapters import Checkpoint
from para_jax.formats import facts, tensors
from para_jax.params import from_params, nest, to_params, unnest
from para_jax.spectrum import check

_KEY = "para_jax"
_VERSION = 1


def save(checkpoint: Checkpoint, folder: pathlib.Path) -> Checkpoint:
    """Writes a checkpoint into an existing, empty folder, and returns it.

    Scales are kept beside the factors, not folded in: what is read is what was saved.

    Raises:
      OSError: if the disk is full or the folder cannot be written.
    """
    bare = {
        path: dataclasses.replace(x, scale=1.0)
        for path, x in checkpoint.adapters.items()
    }
    tree: Any = {
        "lora": to_params(bare),
        "bias": nest(checkpoint.biases),
        "extra": dict(checkpoint.extra),
    }
    folder.rmdir()  # Orbax makes it, by a rename of its own.
    metadata: Any = {_KEY: _metadata(checkpoint)}
    try:
        ocp.save(str(folder.absolute()), tree, custom_metadata=metadata)
    except ValueError as error:  # Such as that of TensorStore for a full disk.
        raise tensors.os_error(error, folder) from error
    return checkpoint


def load(folder: pathlib.Path, *, scale: float | None = None) -> Checkpoint:
    """Returns what `save` wrote, or the adapters in a tree of `to_params`' form.

    Args:
      folder: The checkpoint, written by Orbax's v0 or v1 interface.
      scale: For a checkpoint that `save` did not write: what to multiply `a @ b` with.

    Raises:
      ValueError: if there are no adapters in it, or a scale is needed or not wanted.
    """
    tree, metadata = _read(folder)
    if _KEY not in metadata:
        return _foreign(folder, tree, scale)
    if scale is not None:
        raise ValueError(f"'{folder}' holds its own scales: leave out scale={scale:g}.")
    own = metadata[_KEY]
    if isinstance(own, dict) and own.get("version", 0) > _VERSION:
        raise ValueError(f"'{folder}' was written by a newer para_jax: update yours.")
    try:
        return _ours(tree, own)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{folder}' is damaged: its metadata or a part of its tree is not as it "
            f"was written ({_first_line(error)})."
        ) from error


def _ours(tree: Mapping[str, Any], own: Mapping[str, Any]) -> Checkpoint:
    """Returns the checkpoint that `save` wrote."""
    factors, found = from_params(tree["lora"]), facts.from_json(own["facts"])
    adapters = {
        path: dataclasses.replace(
            factors[path], scale=scale, nominal=found.nominal.get(path)
        )
        for path, scale in own["scales"].items()
    }
    for path, adapter in adapters.items():
        check(path, adapter)
    return Checkpoint(
        adapters=adapters,
        layers=found.layers,
        biases=unnest(tree.get("bias", {})),
        absent=found.absent,
        extra=tree.get("extra", {}),
        config=own["config"],
        provenance=found.provenance,
        residual=own["residual"],
    )


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what the arrays do not say, as plain JSON values."""
    adapters = checkpoint.adapters
    return {
        "version": _VERSION,
        "scales": {path: float(x.scale) for path, x in adapters.items()},
        "ranks": {path: x.rank for path, x in adapters.items()},
        "config": dict(checkpoint.config),
        "residual": checkpoint.residual,
        "facts": facts.to_json(checkpoint),
    }


def _read(folder: pathlib.Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Returns the tree, its leaves NumPy arrays, and the custom metadata."""
    path = str(folder.absolute())
    try:
        metadata = ocp.metadata(path)
        wanted = jax.tree.map(lambda _: np.ndarray, metadata.metadata)
        tree: Any = ocp.load(path, wanted)
        ours: Any = metadata.custom_metadata
    except Exception as error:  # Orbax raises many kinds, few of them documented.
        raise ValueError(
            f"Orbax cannot read '{folder}' ({_first_line(error)}). It may be damaged."
        ) from error
    if not isinstance(tree, Mapping):
        raise ValueError(f"'{folder}' holds a {type(tree).__name__}, expected a tree.")
    return tree, ours or {}


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"


def _foreign(
    folder: pathlib.Path, tree: Mapping[str, Any], scale: float | None
) -> Checkpoint:
    if tree.keys() == {"lora", "bias", "extra"}:
        raise ValueError(
            f"'{folder}' was written by para_jax, but its metadata, which holds the "
            "scales, is gone. Copy the whole folder again."
        )
    try:
        adapters = from_params(tree, scale=1.0 if scale is None else scale)
        for path, adapter in adapters.items():
            check(path, adapter)
    except ValueError as error:
        raise ValueError(f"Cannot read the adapters in '{folder}': {error}") from error
    if not adapters:
        raise ValueError(
            f"'{folder}' holds no adapters: expected modules with 'a' and 'b'."
        )
    if scale is None or not math.isfinite(scale):
        raise ValueError(
            f"'{folder}' was not written by para_jax, and does not say what a @ b is "
            "multiplied with. Give scale=: alpha / r of the run that trained it, a "
            "finite number, or 1 for params that to_params made."
        )
    return Checkpoint(adapters=adapters)
