"""A directory that several processes write together. Host.

The first process makes room for it and puts it in its place; all write. Each step is
over when it is over in every process, and a failure of one is a failure of all: none
waits for a process that has given up.
"""

import contextlib
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from para_jax.formats import atomic

_LONGEST = 4096  # Bytes of a path, or of an error.


@contextlib.contextmanager
def replacing(
    target: pathlib.Path, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Yields what `atomic.replacing` yields, one directory for all processes.

    All of them have to call it, with the same target on a file system that they share.

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
        new = pathlib.Path(_told(str(new))[0])
        with _together():
            yield new
        with _together():
            room.close()


def is_first() -> bool:
    """Returns whether this is the process that does what one alone should do."""
    return jax.process_index() == 0


def wait() -> None:
    """Returns when every process is here, in the body of `replacing`.

    Raises:
      OSError: if another process has left that body by an error.
    """
    if jax.process_count() > 1:
        with _together():
            pass


class _FailedElsewhereError(OSError):
    """What the other processes raise where one fails. They know of it already."""


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Fails where the body fails in any process."""
    try:
        yield
    except _FailedElsewhereError:
        raise
    except Exception as error:
        _told(f"{type(error).__name__}: {error}")
        raise
    for i, message in enumerate(_told("")):
        if message:
            raise _FailedElsewhereError(
                f"Nothing is written, as process {i} failed: {message}"
            )


def _told(text: str) -> list[str]:
    """Returns what each process says. Waits for all of them."""
    line = np.zeros(_LONGEST, np.uint8)
    said = text.encode()[:_LONGEST]
    line[: len(said)] = np.frombuffer(said, np.uint8)
    lines = np.asarray(multihost_utils.process_allgather(line))
    return [bytes(x).rstrip(b"\0").decode(errors="ignore") for x in lines]
