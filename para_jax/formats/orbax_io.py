"""Orbax's own calls, with errors that name the folder. Host.

Reading asks for NumPy arrays of whatever shapes the checkpoint has, so it works for
any ranks, and for a checkpoint that other devices saved.
"""

import pathlib
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from para_jax.formats import other_files, processes, tensors

PLACEHOLDER = ocp.PLACEHOLDER

# Calls of several threads at once fail now and then.
_alone = threading.Lock()
"""What stands for a leaf that is not to be read."""

_STEP = "_CHECKPOINT_METADATA"
_AT_ONCE = 2**24  # Bytes: what a call holds beside the tree.
_CALLS = 16  # A tree that is larger than so many batches has larger batches.


def shapes(folder: pathlib.Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Returns the tree with shapes for its leaves, and the custom metadata.

    Raises:
      ValueError: if Orbax cannot read it, or it holds no tree.
    """
    try:
        with _alone:
            found = ocp.metadata(*_place(folder))
        tree, metadata = found.metadata, found.custom_metadata
    except Exception as error:  # Orbax raises many kinds, few of them documented.
        raise _unreadable(folder, error) from error
    if not isinstance(tree, Mapping):
        raise ValueError(
            f"Orbax finds no tree of arrays in '{folder}'. It may be damaged."
        )
    found = metadata if isinstance(metadata, Mapping) else {}
    return tree, dict(found)


def read(
    folder: pathlib.Path,
    wanted: Any,
    known: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> Any:
    """Returns the tree of a checkpoint.

    Args:
      folder: The checkpoint, or one step of a CheckpointManager.
      wanted: A tree of `np.ndarray`, and of `PLACEHOLDER` for what is left out.
      known: Arrays that are in memory already, by slash-joined key: one that is equal
        to the leaf of its key takes its place, so reading back takes no memory.

    Raises:
      ValueError: if Orbax cannot read it.
    """
    kinds, structure = jax.tree.flatten_with_path(wanted)
    names = [jax.tree_util.keystr(x, simple=True, separator="/") for x, _ in kinds]
    sizes = [known[name].nbytes if name in known else 0 for name in names]
    result = [PLACEHOLDER] * len(names)
    for some in _batches(sizes):
        tree = [x if i in some else PLACEHOLDER for i, (_, x) in enumerate(kinds)]
        found = jax.tree.leaves(_load(folder, jax.tree.unflatten(structure, tree)))
        for i in some:
            result[i] = tensors.shared(found[i], names[i], known)
    return jax.tree.unflatten(structure, result)


def _load(folder: pathlib.Path, wanted: Any) -> Any:
    try:
        path, item = _place(folder)
        with _alone:
            return ocp.load(path, wanted, checkpointable_name=item)
    except Exception as error:
        raise _unreadable(folder, error) from error


def _place(folder: pathlib.Path) -> tuple[str, str]:
    """Returns the checkpoint that a folder is, or is one item of, and the item."""
    path = folder.absolute()
    if not (path / _STEP).exists() and (path.parent / _STEP).exists():
        return str(path.parent), path.name
    return str(path), "AUTO"


def _batches(sizes: Sequence[int]) -> Iterator[range]:
    """Yields the positions of neighbours that together have the size of a batch."""
    limit = max(_AT_ONCE, sum(sizes) // _CALLS)
    start = total = 0
    for i, size in enumerate(sizes):
        total += size
        if total >= limit or i == len(sizes) - 1:
            yield range(start, i + 1)
            start, total = i + 1, 0


def write(folder: pathlib.Path, tree: Any, metadata: Any) -> None:
    """Writes a tree into an existing, empty folder.

    Raises:
      OSError: if the disk is full or the folder cannot be written.
    """
    if processes.is_first():
        folder.rmdir()  # Orbax makes it, by a rename of its own.
    processes.wait()
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False  # They change only after it returns.
    context.memory.write_concurrent_bytes = _AT_ONCE
    try:
        with _alone, context:
            ocp.save(str(folder.absolute()), tree, custom_metadata=metadata)
    except ValueError as error:  # Such as that of TensorStore for a full disk.
        raise tensors.os_error(error, folder) from error


def first_line(error: Exception) -> str:
    """Returns what an error says, short."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"


def _unreadable(folder: pathlib.Path, error: Exception) -> ValueError:
    other_files.check_pointers(folder)
    return ValueError(
        f"Orbax cannot read '{folder}' ({first_line(error)}). It may be damaged."
    )
