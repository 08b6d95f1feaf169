"""Orbax checkpoints: trees of arrays, written by `save` or by other libraries."""

import contextlib
import pathlib

from para_jax._adapters.checkpoint import Checkpoint
from para_jax._engines.profiles import Profile
from para_jax.formats.format import FileFormat, Hints

_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
# A step of a CheckpointManager has its tree in an item of one of these names.
_ITEMS = ("state", "default", "pytree", "items", "params", "model_params")


def _load(path: pathlib.Path, hints: Hints) -> Checkpoint:
    from para_jax.formats.orbax import checkpoint as files

    return files.load(path, hints)


def _save(checkpoint: Checkpoint, path: pathlib.Path, _profile: Profile) -> Checkpoint:
    from para_jax.formats.orbax import checkpoint as files

    return files.save(checkpoint, path)


def _read_back(path: pathlib.Path, written: Checkpoint) -> Checkpoint:
    from para_jax.formats.orbax import checkpoint as files

    return files.read_back(path, written)


def _replacing(
    target: pathlib.Path, *, overwrite: bool = False
) -> contextlib.AbstractContextManager[pathlib.Path]:
    # Orbax's writer is the only one that several processes can call together.
    from para_jax.formats import multihost

    return multihost.replacing(target, overwrite=overwrite)


FORMAT = FileFormat(
    name="orbax",
    load=_load,
    save=_save,
    read_back=_read_back,
    replacing=_replacing,
    marks=(*_MARKS, *(f"{item}/{mark}" for item in _ITEMS for mark in _MARKS)),
    hints=("layout", "alpha", "scale", "stack_axis"),
    is_divided=True,
)
