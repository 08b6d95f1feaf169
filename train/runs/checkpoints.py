"""Checkpoints of a run on disk; the newest two are kept. Runs on the host."""

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

# Two: a crash while one is written leaves the one before.
_KEPT = 2


@contextmanager
def opened(folder: pathlib.Path) -> Iterator[ocp.training.Checkpointer]:
    """Open the checkpoints for `save` and `restore`."""
    # Orbax's own annotations do not fit each other.
    newest: Any = ocp.training.preservation_policies.LatestN(_KEPT)
    with ocp.training.Checkpointer(
        str(folder.absolute()), preservation_policy=newest, cleanup_tmp_directories=True
    ) as checkpointer:
        yield checkpointer


def save(checkpointer: ocp.training.Checkpointer, step: int, state: Any) -> None:
    """Write a tree of arrays atomically."""
    # Forced: the caller decides when to save, not Orbax's policy.
    checkpointer.save(step, state, force=True)


def restore(
    checkpointer: ocp.training.Checkpointer, like: Any
) -> tuple[int, Any] | None:
    """Return the newest step and its state, bit for bit, or None without one.

    Args:
      checkpointer: From `opened`.
      like: A tree with the state's structure, shapes and dtypes.

    Raises:
      ValueError: if it cannot be read, or has other shapes.
    """
    if checkpointer.latest is None:
        return None
    step = checkpointer.latest.step
    # As NumPy arrays: otherwise the file's own sharding would apply.
    wanted = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    try:
        state = checkpointer.load(step, wanted)
    except Exception as error:  # Orbax raises many kinds, few of them documented.
        raise ValueError(
            f"The checkpoint of step {step} in '{checkpointer.directory}' cannot be "
            f"read ({type(error).__name__}). Delete the folder '{step}' in it to go on "
            "from the one before, or choose another place with --out."
        ) from error
    return step, jax.tree.map(jnp.asarray, state)
