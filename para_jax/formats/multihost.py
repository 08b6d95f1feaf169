"""Directories written by several processes together.

The first process makes the directory and renames it; all write. Each step ends when it
has ended in every process, and a failure of one is a failure of all, so that none waits
for a process that has given up. Runs on the host.
"""

import contextlib
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from para_jax.formats import atomic

# Bytes of a path, or of an error. Fixed, since a collective needs equal shapes.
_LONGEST = 4096


@contextlib.contextmanager
def replacing(
    target: pathlib.Path, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Yield the new directory of `atomic.replacing`, one for all processes.

    All of them must call it, with the same target on a shared file system.

    Raises:
      OSError: as `atomic.replacing`, in every process; or if another process failed.
    """
    if jax.process_count() == 1:
        with atomic.replacing(target, overwrite=overwrite) as new:
            yield new
        return
    with contextlib.ExitStack() as room:
        new = pathlib.Path()
        with _together():
            if is_first():
                make = atomic.replacing(target, overwrite=overwrite)
                new = room.enter_context(make)
        # The name is random, so the others must be told.
        new = pathlib.Path(_told(str(new))[0])
        with _together():
            yield new
        with _together():
            room.close()


def is_first() -> bool:
    """Decide whether this process does the work of a single one."""
    return jax.process_index() == 0


def wait() -> None:
    """Wait for every process, inside the body of `replacing`.

    Raises:
      OSError: if another process has left that body by an error.
    """
    if jax.process_count() > 1:
        with _together():
            pass


class _FailedElsewhereError(OSError):
    """The failure of another process, which knows of it already."""


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Fail if the body fails in any process."""
    try:
        yield
    except _FailedElsewhereError:
        raise
    except Exception as error:
        # The others wait in the same call below: answer before leaving.
        _told(f"{type(error).__name__}: {error}")
        raise
    for i, message in enumerate(_told("")):
        if message:
            raise _FailedElsewhereError(
                f"Nothing is written, as process {i} failed: {message}"
            )


def _told(text: str) -> list[str]:
    """Exchange one line of text between all processes; return every line."""
    line = np.zeros(_LONGEST, np.uint8)
    said = text.encode()[:_LONGEST]
    line[: len(said)] = np.frombuffer(said, np.uint8)
    lines = np.asarray(multihost_utils.process_allgather(line))
    return [bytes(x).rstrip(b"\0").decode(errors="ignore") for x in lines]
