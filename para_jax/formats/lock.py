"""What one process at a time may have to itself. Host."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[bool]:
    """Locks a folder or a file while the body runs, and says whether it is ours.

    The lock ends with its process, however that ends.

    Raises:
      OSError: if there is no such folder or file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        ours = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            ours = False
        except OSError:  # Some network file systems have no locks, and go without.
            pass
        yield ours
    finally:
        os.close(descriptor)
