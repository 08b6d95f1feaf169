"""Directories and files that are replaced as a whole or not at all.

A new one is written beside the target, flushed to disk, and put in its place by one
rename. Where the target exists, the two change places in one system call; where the
system or the file system has no such call, the old one is moved aside first, and
`recover` puts it back should a crash come between.
"""

import atexit
import contextlib
import ctypes
import errno
import os
import pathlib
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator

from para_jax._adapters.messages import Message, Remedy

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2  # macOS
_NEW = re.compile(r"\.(?P<name>.+)\.para-new-(?P<host>\w+)-(?P<pid>\d+)-[0-9a-f]+$")
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)

ADAPTER_FILES = ("adapter_config.json", "_METADATA", "_CHECKPOINT_METADATA")
"""A directory that holds one of these is an adapter, and may be overwritten."""


def check_target(target: pathlib.Path, *, overwrite: bool) -> None:
    """Raises OSError unless `target` may be written.

    Only an adapter or an empty directory is ever replaced.
    """
    recover(target)
    if (target.exists() or target.is_symlink()) and not target.is_dir():
        raise FileExistsError(f"'{target}' exists and is not a directory.")
    _check_parents(target)
    inside = {x.name for x in target.iterdir()} if target.exists() else set()
    if not inside:
        return
    if not overwrite:
        raise FileExistsError(
            Message(
                f"'{target}' exists. Choose another place, or ", Remedy.OVERWRITE, "."
            )
        )
    if not inside.intersection(ADAPTER_FILES):
        raise FileExistsError(
            f"'{target}' is not an adapter (it holds '{min(inside)}'), so it is not "
            "overwritten. Choose another place."
        )


@contextlib.contextmanager
def replacing(
    target: pathlib.Path, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Yields a new, empty directory, which becomes `target` if the body succeeds.

    Args:
      target: The directory to make; its parents are made too. Where it is a link, what
        that points to is replaced.
      overwrite: Whether an adapter that is there may be replaced.

    Raises:
      OSError: if the target exists or cannot be written. It is then as it was.
    """
    check_target(target, overwrite=overwrite)
    with _room(target) as (new, real):
        new.mkdir()
        yield new
        _flush(new)
        check_target(target, overwrite=overwrite)
        _put(new, real, overwrite=overwrite)


@contextlib.contextmanager
def replacing_file(
    target: pathlib.Path, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Yields the path of a new file, which becomes `target` if the body succeeds.

    Arguments and errors are those of `replacing`.
    """
    check_file(target, overwrite=overwrite)
    with _room(target) as (new, real):
        yield new
        _flush_file(new)
        check_file(target, overwrite=overwrite)
        new.replace(real)
        _flush_directory(real.parent)


def check_file(target: pathlib.Path, *, overwrite: bool) -> None:
    """Raises OSError unless the file `target` may be written."""
    if target.is_dir():
        raise IsADirectoryError(f"'{target}' is a directory, expected a file.")
    _check_parents(target)
    if (target.exists() or target.is_symlink()) and not overwrite:
        raise FileExistsError(
            Message(
                f"'{target}' exists. Choose another place, or ", Remedy.OVERWRITE, "."
            )
        )


@contextlib.contextmanager
def _room(target: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Yields where to write the new one, and where it goes, links followed."""
    real = pathlib.Path(os.path.realpath(target))
    name = f".{real.name}.para-new-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    room = real.with_name(name)  # For what a writer itself puts beside its directory.
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        _sweep(real)
        room.mkdir()
        yield room / real.name, real
    except BaseException as error:
        _failed.add(room)
        if not isinstance(error, OSError) or error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(target)) from error
    finally:
        _remove(room)


_failed: set[pathlib.Path] = set()


@atexit.register
def _remove_failed() -> None:
    """Removes what threads of writers that failed have made again, for one second.

    Seen of Orbax on a full disk: a folder that was there again after the threads of
    Python had ended. So this looks for longer, and cannot know for how long.
    """
    for _ in range(20 if _failed else 0):
        for room in _failed:
            shutil.rmtree(room, ignore_errors=True)
        time.sleep(0.05)


def _remove(room: pathlib.Path) -> None:
    """Removes a room in which the threads of a writer that failed may still work."""
    for _ in range(40):
        shutil.rmtree(room, ignore_errors=True)
        if not room.exists():
            return
        time.sleep(0.05)


def recover(target: pathlib.Path) -> None:
    """Puts back what a crash in the middle of `replacing` left aside."""
    real = pathlib.Path(os.path.realpath(target))
    aside = _aside(real)
    if not aside.exists():
        return
    if real.exists():  # The crash came after the new one was in its place.
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.rename(real)


def _check_parents(target: pathlib.Path) -> None:
    for parent in target.parents:
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(f"'{parent}' is not a directory.")


def _put(new: pathlib.Path, target: pathlib.Path, *, overwrite: bool) -> None:
    try:
        new.rename(target)  # Takes the place of nothing, or of an empty directory.
    except OSError as error:
        if not overwrite or error.errno not in _TAKEN:
            raise
        if not _exchange(new, target):
            target.rename(_aside(target))
            new.rename(target)
            shutil.rmtree(_aside(target), ignore_errors=True)
    _flush_directory(target.parent)


def _aside(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}.para-old")


def _exchange(one: pathlib.Path, two: pathlib.Path) -> bool:
    """Swaps two directories in one step; returns whether the system can."""
    names = os.fsencode(one), os.fsencode(two)
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        old, new = names
        return not libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_EXCHANGE)
    if sys.platform == "darwin":
        return not libc.renamex_np(*names, _RENAME_SWAP)
    return False


def _sweep(target: pathlib.Path) -> None:
    """Removes what processes that were killed while writing `target` left behind."""
    # Nothing dearer than this on each of what may be thousands of neighbours.
    start = f".{target.name}.para-new-"
    with os.scandir(target.parent) as inside:
        found = [x.name for x in inside if x.name.startswith(start)]
    for name in found:
        match = _NEW.match(name)
        ours = match and (match["name"], match["host"]) == (target.name, _host())
        if match and ours and not _alive(int(match["pid"])):
            shutil.rmtree(target.with_name(name), ignore_errors=True)


def _host() -> str:
    """Returns the machine's name: a process number means nothing on another one."""
    return re.sub(r"\W", "_", platform.node()) or "_"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(directory: pathlib.Path) -> None:
    for root, _, files in os.walk(directory):
        for name in files:
            _flush_file(pathlib.Path(root, name))
        _flush_directory(pathlib.Path(root))


def _flush_file(path: pathlib.Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_directory(directory: pathlib.Path) -> None:
    if sys.platform == "win32":  # Has no descriptors for directories.
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
