"""Calls of Orbax, with errors that name the folder.

Reading requests NumPy arrays of the shapes in the checkpoint, so it works for any
ranks, and for checkpoints saved on other devices. Leaves other than arrays are read as
they were saved (see `leaves.py`). Runs on the host.
"""

import contextlib
import pathlib
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp_v0
from orbax.checkpoint import v1 as ocp

from para_jax.formats import multihost, other_files, tensor_files
from para_jax.formats.orbax import leaves as orbax_leaves

PLACEHOLDER = ocp.PLACEHOLDER
"""Stands for a leaf to leave unread."""

# Orbax is not safe for threads: calls at once fail now and then.
_one_call = threading.Lock()

_STEP = "_CHECKPOINT_METADATA"
_TREE = "_METADATA"
_AT_ONCE = 2**24  # Bytes that a call holds beside the tree.
_CALLS = 16  # The most batches: a larger tree has larger ones, not more.


def shapes(folder: pathlib.Path) -> tuple[Any, Mapping[str, Any]]:
    """Read the tree with a description for each leaf, and the custom metadata.

    Returns:
      The tree of `leaves.Description`, and the metadata.

    Raises:
      ValueError: if Orbax cannot read it, or it holds no tree.
    """
    try:
        path, item = _place(folder)
        with _one_call:
            # v1 cannot describe a bool (orbax-checkpoint 0.12.8): for one among all
            # leaves it returns None for the tree, or raises. v0 reads both versions.
            place = ocp.path.Path(path / item if item else path)
            tree = ocp_v0.PyTreeCheckpointHandler().metadata(place).tree
            metadata = _custom(path)
        tree = jax.tree.map(orbax_leaves.described, tree)
    except Exception as error:  # Orbax raises many kinds, few of them documented.
        raise _unreadable(folder, error) from error
    if not isinstance(tree, Mapping | list | tuple):
        raise ValueError(f"'{folder}' holds a single value, expected a tree of arrays.")
    return tree, metadata


def _custom(path: pathlib.Path) -> Mapping[str, Any]:
    """Read the custom metadata of a checkpoint; Orbax loads one without any too."""
    if not (path / _STEP).exists():
        return {}
    with contextlib.suppress(ValueError):
        found = ocp_v0.metadata.get_step_metadata(path).custom_metadata
        return dict(found) if isinstance(found, Mapping) else {}
    return {}


def read(
    folder: pathlib.Path,
    wanted: Any,
    known: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> Any:
    """Read the tree of a checkpoint.

    Args:
      folder: The checkpoint, or one step of a CheckpointManager.
      wanted: The tree of `shapes`, with `PLACEHOLDER` for leaves to leave out.
      known: Arrays in memory already, by slash-joined key. Each replaces the leaf of
        its key if they are equal, so reading back takes no memory.

    Raises:
      ValueError: if Orbax cannot read it.
    """
    leaves, structure = jax.tree.flatten_with_path(wanted)
    names = [jax.tree_util.keystr(x, simple=True, separator="/") for x, _ in leaves]
    asked = [x if x is PLACEHOLDER else orbax_leaves.requested(x) for _, x in leaves]
    sizes = [known[name].nbytes if name in known else 0 for name in names]
    result = [PLACEHOLDER] * len(names)
    for some in _batches(sizes):
        tree = [x if i in some else PLACEHOLDER for i, x in enumerate(asked)]
        found = jax.tree.leaves(_load(folder, jax.tree.unflatten(structure, tree)))
        for i in some:
            leaf = orbax_leaves.received(found[i])
            result[i] = tensor_files.shared(leaf, names[i], known)
    return jax.tree.unflatten(structure, result)


def _load(folder: pathlib.Path, wanted: Any) -> Any:
    try:
        path, item = _place(folder)
        with _one_call:
            return ocp.load(str(path), wanted, checkpointable_name=item)
    except Exception as error:
        raise _unreadable(folder, error) from error


def _place(folder: pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """Split a path into a checkpoint and the name of an item in it, if any.

    Among several items it is the one that Orbax would choose: `state`, or the first by
    name that is a tree. A checkpoint of v0 may be a tree itself, without items.
    """
    path = folder.absolute()
    if (path / _TREE).exists():
        whole = (path / _STEP).exists() or not (path.parent / _STEP).exists()
        return (path, None) if whole else (path.parent, path.name)
    items = sorted(x.parent.name for x in path.glob(f"*/{_TREE}"))
    if not items:
        raise FileNotFoundError(f"There is no {_TREE} in it, nor in a folder of it.")
    return path, "state" if "state" in items else items[0]


def _batches(sizes: Sequence[int]) -> Iterator[range]:
    """Yield ranges of neighbours with the total size of a batch."""
    limit = max(_AT_ONCE, sum(sizes) // _CALLS)
    start = total = 0
    for i, size in enumerate(sizes):
        total += size
        if total >= limit or i == len(sizes) - 1:
            yield range(start, i + 1)
            start, total = i + 1, 0


def write(folder: pathlib.Path, tree: Any, metadata: Any) -> None:
    """Write a tree into an existing, empty folder.

    Raises:
      OSError: if the disk is full or the folder cannot be written.
      ValueError: if Orbax cannot hold a leaf. The message names its path.
    """
    tree = orbax_leaves.stored(tree)
    if multihost.is_first():
        folder.rmdir()  # Orbax makes it, by a rename of its own.
    multihost.wait()
    context = ocp.Context()
    # Nobody changes the arrays before it returns.
    context.memory.deepcopy_host_arrays = False
    context.memory.write_concurrent_bytes = _AT_ONCE
    try:
        with _one_call, context:
            ocp.save(str(folder.absolute()), tree, custom_metadata=metadata)
    except ValueError as error:
        raise _unwritten(folder, tree, error) from error


def _unwritten(folder: pathlib.Path, tree: Any, error: ValueError) -> Exception:
    """Return the error to raise: TensorStore reports a full disk so too."""
    if (system := tensor_files.os_error(error, folder)) is not None:
        return system
    return orbax_leaves.unsupported(tree, str(error)) or ValueError(
        f"Orbax cannot write '{folder}' ({first_line(error)})."
    )


def first_line(error: Exception) -> str:
    """Format an error as one short line."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"


def _unreadable(folder: pathlib.Path, error: Exception) -> ValueError:
    other_files.check_pointers(folder)
    return ValueError(
        f"Orbax cannot read '{folder}' ({first_line(error)}). It may be damaged."
    )
