"""Flush files and directories to disk. Runs on the host."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator
from concurrent import futures


@contextlib.contextmanager
def meanwhile(new: pathlib.Path) -> Iterator[None]:
    """Flush a written file, or a directory, while the body reads it back.

    Raises:
      OSError: if the disk fails.
    """
    with futures.ThreadPoolExecutor(1) as thread:
        flushed = thread.submit(file if new.is_file() else tree, new)
        yield
        flushed.result()


def tree(path: pathlib.Path) -> None:
    """Flush a directory and everything in it."""
    for root, _, files in os.walk(path):
        for name in files:
            file(pathlib.Path(root, name))
        directory(pathlib.Path(root))


def file(path: pathlib.Path) -> None:
    """Flush the data of a file."""
    # `fsync` flushes the file's data, whichever descriptor it is called with.
    with path.open("rb") as opened:
        os.fsync(opened.fileno())


def directory(path: pathlib.Path) -> None:
    """Flush the names in a directory: only then is a rename on disk."""
    if sys.platform == "win32":  # Has no descriptors for directories.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
