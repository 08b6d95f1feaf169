"""A fleet: the adapters of many tenants, each made a child of its own. Host.

`find` says which there are, `pending` which are not done yet, and an engine (`threads`
here, Ray in `para_jax._fleet.ray`) calls the same unit of work on each: one adapter in,
one child on disk and one row of the manifest out. A child appears as a whole or not at
all, and made again it is the same. So a run may be killed at any moment: started again,
it does at most what was in flight a second time.

In memory none of this is needed. With adapters of equal shapes stacked along a leading
axis, `jax.jit(jax.vmap(child))` cuts each by its own pool, where `child` is
`decompose`, `masks` and `repack` with `form="masked"`.
"""

import concurrent.futures
import functools
import glob
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from para_jax._adapters.messages import Message, on_one_line
from para_jax._fleet.manifest import Manifest, Row
from para_jax._pruning.report import Report
from para_jax.formats import Format, recognise, recognition

JOBS = 4
"""How many tenants are in flight at once, if nobody says."""

Work = Callable[[pathlib.Path, pathlib.Path], Report]
"""Makes one child: the path of the parent, the path of the child -> what was kept."""


class Tenant(NamedTuple):
    """One adapter of a fleet.

    Attributes:
      name: The path of the parent below the fixed part of the pattern.
      source: The parent.
      target: The child.
    """

    name: str
    source: pathlib.Path
    target: pathlib.Path


class Found(NamedTuple):
    """What patterns match.

    Attributes:
      tenants: The adapters, by name.
      others: What is none, nor a part of one.
    """

    tenants: list[Tenant]
    others: list[pathlib.Path]


def find(
    patterns: Sequence[str], folder: pathlib.Path, form: Format | None = None
) -> Found:
    """Returns the adapters that patterns such as `tenants/*/adapter` match.

    An adapter's name is its path below the pattern's fixed part, here `acme/adapter`,
    or its last part where nothing in the pattern varies. What lies in `folder` is left
    out. `adapter_model.safetensors` and `adapters.safetensors` stand for their folder.

    Args:
      patterns: As in a shell; `**` matches any number of folders.
      folder: Where the children go: each to `folder / name`.
      form: The format of the children; that of each parent by default. Those in kohya's
        end in `.safetensors`.

    Raises:
      FileNotFoundError: if there is no adapter.
      ValueError: if two have one name, or one lies in another.
    """
    found: dict[str, Tenant] = {}
    others: list[pathlib.Path] = []
    for path, name in _matches(patterns, folder):
        if (kind := _form(path)) is None:
            others.append(path)
            continue
        name = name.removesuffix(path.suffix if kind == "kohya" else ".safetensors")
        ending = ".safetensors" if (form or kind) == "kohya" else ""
        new = Tenant(name, path, folder / f"{name}{ending}")
        if (old := found.setdefault(name, new)).source != path:
            raise ValueError(
                f"'{old.source}' and '{path}' would both become '{new.target}'. Use "
                "one pattern whose fixed part is above both, in quotes."
            )
    if not found and others:
        recognise(others[0])  # Raises, and says what it is.
    _check(patterns, folder, found)
    above = {parent for x in found.values() for parent in x.source.parents}
    sources = {x.source for x in found.values()}
    outside = [x for x in others if x not in above and not sources & {*x.parents}]
    return Found([found[name] for name in sorted(found)], outside)


def _form(path: pathlib.Path) -> Format | None:
    """Returns the format of an adapter, and None for anything else."""
    try:
        return recognise(path)
    except (FileNotFoundError, ValueError):
        return None


def _matches(
    patterns: Sequence[str], folder: pathlib.Path
) -> Iterator[tuple[pathlib.Path, str]]:
    """Yields what patterns match, once each, and its name."""
    inside, seen = folder.resolve(), set()
    for pattern in map(os.path.expanduser, patterns):
        parts = pathlib.Path(pattern).parts
        fixed = [*map(glob.has_magic, parts), True].index(True)
        root = pathlib.Path(*parts[: min(fixed, len(parts) - 1)])
        # `Path.glob` takes no pattern that begins at the root.
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207
        for path in map(pathlib.Path, sorted(matches)):
            place = recognition.place(path)
            if place in seen or place.resolve().is_relative_to(inside):
                continue
            seen.add(place)
            if place == root:  # It was found by the file of weights in it.
                yield place, place.resolve().name
            else:
                yield place, place.relative_to(root).as_posix()


def _check(
    patterns: Sequence[str], folder: pathlib.Path, found: dict[str, Tenant]
) -> None:
    if not found:
        raise FileNotFoundError(
            f"'{patterns[0]}' matches no adapter outside of '{folder}'."
        )
    for name, (_, source, _) in found.items():
        if folder.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"'{folder}' lies in the adapter '{source}'. Move it out.")
        for outer in map(str, pathlib.PurePosixPath(name).parents):
            if outer in found:
                raise ValueError(
                    f"'{found[outer].source}' and '{source}' are both adapters, and "
                    "the child of the one would contain that of the other. Narrow the "
                    "pattern."
                )


def identity(source: pathlib.Path) -> str:
    """Returns a digest of the names, sizes and times of change of a parent's files.

    As `make` and `rsync` do, and without reading what may be terabytes. A parent that
    was merely touched is compressed again, to the same child.
    """
    lines = []
    for path in _files(source):
        found = path.stat()
        name = path.relative_to(source).as_posix()
        lines.append((name, found.st_size, found.st_mtime_ns))
    return hashlib.sha256(repr(lines).encode()).hexdigest()[:16]


def _files(place: pathlib.Path) -> list[pathlib.Path]:
    if place.is_file():
        return [place]
    return sorted(x for x in place.rglob("*") if x.is_file())


def _size(place: pathlib.Path) -> int:
    return sum(x.stat().st_size for x in _files(place))


def pending(tenants: Sequence[Tenant], manifest: Manifest) -> list[Tenant]:
    """Returns the tenants that are not done, or whose parent or child has changed."""
    return [x for x in tenants if not _is_done(x, manifest.rows.get(x.name))]


def _is_done(tenant: Tenant, row: Row | None) -> bool:
    return (
        row is not None
        and row.status == "done"
        and row.bytes == _size(tenant.target)
        and row.identity == identity(tenant.source)
    )


def tend(work: Work, tenant: Tenant) -> Row:
    """Returns what became of one tenant: the unit of work, the same on all engines."""
    start = time.perf_counter()
    row = functools.partial(
        Row,
        name=tenant.name,
        source=str(tenant.source),
        target=str(tenant.target),
    )
    try:
        # Before it is read: what changes while it is read is done again next time.
        seen = identity(tenant.source)
        report = work(tenant.source, tenant.target)
    except Exception as error:
        text = on_one_line(error)
        if not isinstance(error, (ValueError, OSError)):
            text = Message(f"{type(error).__name__}: ", text)
        return row(status="failed", seconds=time.perf_counter() - start, failure=text)
    return row(
        status="done",
        identity=seen,
        seconds=time.perf_counter() - start,
        bytes=_size(tenant.target),
        kept=report.summary(),
    )


def threads(work: Work, tenants: Sequence[Tenant], *, jobs: int) -> Iterator[Row]:
    """Yields a row a tenant, as they end; so many at once are read, cut and written.

    While one is computed, others are read and written: these leave the interpreter's
    lock. An interrupt waits for those in flight, and begins no other.
    """
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        rows = [pool.submit(tend, work, x) for x in tenants]
        try:
            for row in concurrent.futures.as_completed(rows):
                yield row.result()
        finally:
            pool.shutdown(cancel_futures=True)
