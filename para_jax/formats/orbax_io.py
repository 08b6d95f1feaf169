"""Orbax's own calls, with errors that name the folder. Host.

Reading asks for NumPy arrays of whatever shapes the checkpoint has, so it works for
any ranks, and for a checkpoint that other devices saved.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from orbax.checkpoint import v1 as ocp

from para_jax.formats import tensors

PLACEHOLDER = ocp.PLACEHOLDER
"""What stands for a leaf that is not to be read."""


def shapes(folder: pathlib.Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Returns the tree with shapes for its leaves, and the custom metadata.

    Raises:
      ValueError: if Orbax cannot read it, or it holds no tree.
    """
    try:
        found = ocp.metadata(str(folder.absolute()))
        tree, metadata = found.metadata, found.custom_metadata
    except Exception as error:  # Orbax raises many kinds, few of them documented.
        raise _unreadable(folder, error) from error
    if not isinstance(tree, Mapping):
        raise ValueError(f"'{folder}' holds a {type(tree).__name__}, expected a tree.")
    return tree, dict(metadata or {})


def read(folder: pathlib.Path, wanted: Any) -> Any:
    """Returns the tree of a checkpoint.

    Args:
      folder: The checkpoint, or one step of a CheckpointManager.
      wanted: A tree of `np.ndarray`, and of `PLACEHOLDER` for what is left out.

    Raises:
      ValueError: if Orbax cannot read it.
    """
    try:
        return ocp.load(str(folder.absolute()), wanted)
    except Exception as error:
        raise _unreadable(folder, error) from error


def write(folder: pathlib.Path, tree: Any, metadata: Any) -> None:
    """Writes a tree into an existing, empty folder.

    Raises:
      OSError: if the disk is full or the folder cannot be written.
    """
    folder.rmdir()  # Orbax makes it, by a rename of its own.
    try:
        ocp.save(str(folder.absolute()), tree, custom_metadata=metadata)
    except ValueError as error:  # Such as that of TensorStore for a full disk.
        raise tensors.os_error(error, folder) from error


def first_line(error: Exception) -> str:
    """Returns what an error says, short."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"


def _unreadable(folder: pathlib.Path, error: Exception) -> ValueError:
    return ValueError(
        f"Orbax cannot read '{folder}' ({first_line(error)}). It may be damaged."
    )
