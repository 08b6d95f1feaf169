"""Replace directories and files atomically.

A new target is written beside the old one, flushed to disk, and put in its place by
one rename. If the target exists, the two are exchanged in one system call. Where there
is no such call, the old one is moved aside first, and `recover` restores it after a
crash in between. Runs on the host.
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
from para_jax.formats import flush

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2  # macOS
_NEW = re.compile(r"\.(?P<name>.+)\.para-new-(?P<host>\w+)-(?P<pid>\d+)-[0-9a-f]+$")
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)

ADAPTER_FILES = ("adapter_config.json", "_METADATA", "_CHECKPOINT_METADATA")
"""Files that mark a directory as an adapter, which may be overwritten."""


def check_target(target: pathlib.Path, *, overwrite: bool) -> None:
    """Raise OSError unless the directory `target` may be written.

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
    """Yield a new, empty directory, renamed to `target` if the body succeeds.

    Args:
      target: The directory to make, with its parents. If it is a link, its target is
        replaced.
      overwrite: Whether an existing adapter may be replaced.

    Raises:
      OSError: if the target exists or cannot be written. It is then as it was.
    """
    check_target(target, overwrite=overwrite)
    with _room(target) as (new, real):
        new.mkdir()
        yield new
        flush.tree(new)
        # Another process may have made the target in the meantime.
        check_target(target, overwrite=overwrite)
        _put(new, real, overwrite=overwrite)


@contextlib.contextmanager
def replacing_file(
    target: pathlib.Path, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Yield the path of a new file, renamed to `target` if the body succeeds.

    Arguments and errors are as in `replacing`.
    """
    check_file(target, overwrite=overwrite)
    with _room(target) as (new, real):
        yield new
        flush.file(new)
        check_file(target, overwrite=overwrite)
        new.replace(real)
        flush.directory(real.parent)


def check_file(target: pathlib.Path, *, overwrite: bool) -> None:
    """Raise OSError unless the file `target` may be written."""
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
def held(path: pathlib.Path) -> Iterator[bool]:
    """Lock a folder or a file while the body runs; yield whether the lock is ours.

    The lock ends with its process, however that ends.

    Raises:
      OSError: if there is no such folder or file.
    """
    import fcntl  # Windows has no such module, and needs none to load and save.

    descriptor = os.open(path, os.O_RDONLY)
    try:
        ours = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            ours = False
        except OSError:  # Some network file systems have no locks: do without.
            pass
        yield ours
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(folder: pathlib.Path, refusal: OSError) -> Iterator[None]:
    """Keep other processes out of a folder while the body runs.

    Args:
      folder: An existing folder.
      refusal: The error to raise if another process has it.
    """
    with held(folder) as ours:
        if not ours:
            raise refusal
        yield


@contextlib.contextmanager
def _room(target: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Yield a path beside the target to write to, and the target, links followed."""
    real = pathlib.Path(os.path.realpath(target))
    name = f".{real.name}.para-new-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    # A folder around the new one, as a writer may put files beside its directory. It
    # is a neighbour of the target, since a rename does not leave the file system.
    room = real.with_name(name)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        _sweep(real)
        room.mkdir()
        yield room / real.name, real
    except BaseException as error:
        _failed.add(room)
        if not isinstance(error, OSError) or error.errno is None:
            raise
        # The user knows the target's name, not the room's.
        raise type(error)(error.errno, error.strerror, str(target)) from error
    finally:
        _remove(room)


_failed: set[pathlib.Path] = set()


@atexit.register
def _remove_failed() -> None:
    """Remove the remains of failed writers again, for one second.

    On a full disk, Orbax has been seen to make a folder again after Python's threads
    had ended. One second is a guess: nothing tells when its own threads end.
    """
    for _ in range(20 if _failed else 0):
        for room in _failed:
            shutil.rmtree(room, ignore_errors=True)
        time.sleep(0.05)


def _remove(room: pathlib.Path) -> None:
    """Remove the room of a writer, even if threads of it still run."""
    # Two seconds at most: a thread that writes makes the folder again.
    for _ in range(40):
        shutil.rmtree(room, ignore_errors=True)
        if not room.exists():
            return
        time.sleep(0.05)


def recover(target: pathlib.Path) -> None:
    """Restore the old target after a crash in the middle of `replacing`."""
    real = pathlib.Path(os.path.realpath(target))
    aside = _aside(real)
    if not aside.exists():
        return
    if real.exists():  # The crash came after the second rename.
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.rename(real)


def _check_parents(target: pathlib.Path) -> None:
    for parent in target.parents:
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(f"'{parent}' is not a directory.")


def _put(new: pathlib.Path, target: pathlib.Path, *, overwrite: bool) -> None:
    try:
        new.rename(target)  # POSIX lets it replace an empty directory, no other.
    except OSError as error:
        if not overwrite or error.errno not in _TAKEN:
            raise
        if not _exchange(new, target):
            target.rename(_aside(target))
            new.rename(target)
            shutil.rmtree(_aside(target), ignore_errors=True)
    flush.directory(target.parent)


def _aside(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}.para-old")


def _exchange(one: pathlib.Path, two: pathlib.Path) -> bool:
    """Swap two directories in one step; return False if the system cannot."""
    names = os.fsencode(one), os.fsencode(two)
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        old, new = names
        return not libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_EXCHANGE)
    if sys.platform == "darwin":
        return not libc.renamex_np(*names, _RENAME_SWAP)
    return False


def _sweep(target: pathlib.Path) -> None:
    """Remove the rooms of processes killed while writing `target`."""
    # A fleet's folder may hold thousands of neighbours: compare names, no more.
    start = f".{target.name}.para-new-"
    with os.scandir(target.parent) as inside:
        found = [x.name for x in inside if x.name.startswith(start)]
    for name in found:
        match = _NEW.match(name)
        ours = match and (match["name"], match["host"]) == (target.name, _host())
        if match and ours and not _alive(int(match["pid"])):
            shutil.rmtree(target.with_name(name), ignore_errors=True)


def _host() -> str:
    """Return the machine's name: a process number is unique on one machine only."""
    return re.sub(r"\W", "_", platform.node()) or "_"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # Signal 0 is not sent, only checked.
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
