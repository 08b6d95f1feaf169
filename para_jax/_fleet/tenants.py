"""A fleet: the adapters of many tenants, each compressed to a child of its own.

`find` lists the tenants and `pending` the unfinished ones. An engine (`threads` here,
Ray in `para_jax._fleet.ray`) calls the same unit of work on each: one adapter in, one
child on disk and one row of the manifest out. A child is written atomically, and a
second compression gives the same files. A run may therefore be killed at any moment;
after a restart, only the tenants in flight are compressed again.

Adapters in memory do not need a fleet. With adapters of equal shapes stacked along a
leading axis, `jax.jit(jax.vmap(child))` cuts each by its own pool, where `child` is
`decompose`, `masks` and `repack` with `form="masked"`. Runs on the host.
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
from para_jax.formats import FORMATS, FileFormat, Format, place, recognise

JOBS = 4
"""The default number of tenants in flight."""

Work = Callable[[pathlib.Path, pathlib.Path], Report]
"""Compresses the parent at one path to a child at another; returns its report."""


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
    """The matches of patterns, sorted into adapters and others.

    Attributes:
      tenants: The adapters, by name.
      others: Paths that are not adapters, nor parts of adapters.
    """

    tenants: list[Tenant]
    others: list[pathlib.Path]


def find(
    patterns: Sequence[str], folder: pathlib.Path, form: Format | None = None
) -> Found:
    """Find the adapters that match patterns such as `tenants/*/adapter`.

    An adapter's name is its path below the pattern's fixed part, here `acme/adapter`,
    or its last part if the pattern has no wildcards. Paths inside `folder` are left
    out. `adapter_model.safetensors` and `adapters.safetensors` stand for their folder.

    Args:
      patterns: As in a shell; `**` matches any number of folders.
      folder: The folder of the children, each at `folder / name`.
      form: The format of the children, by default each parent's. Single files get
        the ending of their format.

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
        name = _bare(name, path, FORMATS[kind])
        new = Tenant(name, path, folder / f"{name}{FORMATS[form or kind].suffix}")
        if (old := found.setdefault(name, new)).source != path:
            raise ValueError(
                f"'{old.source}' and '{path}' would both become '{new.target}'. Use "
                "one pattern whose fixed part is above both, in quotes."
            )
    if not found and others:
        recognise(others[0])  # Raises, and names the kind of file.
    _check(patterns, folder, found)
    above = {parent for x in found.values() for parent in x.source.parents}
    sources = {x.source for x in found.values()}
    outside = [x for x in others if x not in above and not sources & {*x.parents}]
    return Found([found[name] for name in sorted(found)], outside)


def _bare(name: str, path: pathlib.Path, kind: FileFormat) -> str:
    """Remove the ending of a single file from a name."""
    if kind.one_file:
        return name.removesuffix(path.suffix)
    # The name of a folder may end so too, and its child may be a file.
    for form in FORMATS.values():
        name = name.removesuffix(form.suffix)
    return name


def _form(path: pathlib.Path) -> Format | None:
    """Recognise the format of an adapter; return None for anything else."""
    try:
        return recognise(path)
    except (FileNotFoundError, ValueError):
        return None


def _matches(
    patterns: Sequence[str], folder: pathlib.Path
) -> Iterator[tuple[pathlib.Path, str]]:
    """Yield each match of the patterns once, with its name."""
    inside, seen = folder.resolve(), set()
    for pattern in map(os.path.expanduser, patterns):
        parts = pathlib.Path(pattern).parts
        fixed = [*map(glob.has_magic, parts), True].index(True)
        root = pathlib.Path(*parts[: min(fixed, len(parts) - 1)])
        # `Path.glob` refuses a pattern that begins at the root.
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207
        for path in map(pathlib.Path, sorted(matches)):
            found = place(path)
            if found in seen or found.resolve().is_relative_to(inside):
                continue
            seen.add(found)
            if found == root:  # It was found by the file of weights in it.
                yield found, found.resolve().name
            else:
                yield found, found.relative_to(root).as_posix()


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
    """Digest the names, sizes and modification times of a parent's files.

    As in `make` and `rsync`, no contents are read, which may be terabytes. A parent
    that was only touched is compressed again, to the same child.
    """
    lines = []
    for path in _files(source):
        found = path.stat()
        name = path.relative_to(source).as_posix()
        lines.append((name, found.st_size, found.st_mtime_ns))
    # 64 bits suffice: each digest is compared with one other.
    return hashlib.sha256(repr(lines).encode()).hexdigest()[:16]


def _files(place: pathlib.Path) -> list[pathlib.Path]:
    if place.is_file():
        return [place]
    return sorted(x for x in place.rglob("*") if x.is_file())


def size(place: pathlib.Path) -> int:
    """Measure a file, or all files in a folder, in bytes."""
    return sum(x.stat().st_size for x in _files(place))


def pending(tenants: Sequence[Tenant], manifest: Manifest) -> list[Tenant]:
    """Return the tenants still to be compressed."""
    return [x for x in tenants if not _is_done(x, manifest.rows.get(x.name))]


def _is_done(tenant: Tenant, row: Row | None) -> bool:
    # The size tells a child that was removed or replaced since.
    return (
        row is not None
        and row.status == "done"
        and row.bytes == size(tenant.target)
        and row.identity == identity(tenant.source)
    )


def tend(work: Work, tenant: Tenant) -> Row:
    """Compress one tenant and return its manifest row."""
    start = time.perf_counter()
    row = functools.partial(
        Row,
        name=tenant.name,
        source=str(tenant.source),
        target=str(tenant.target),
    )
    try:
        # Before it is read: a change during reading is then noticed by the next run.
        seen = identity(tenant.source)
        report = work(tenant.source, tenant.target)
    except Exception as error:
        # A tenant's failure must not end the run of the others.
        text = on_one_line(error)
        # Sentences of these two are written for users; others need their type.
        if not isinstance(error, (ValueError, OSError)):
            text = Message(f"{type(error).__name__}: ", text)
        return row(status="failed", seconds=time.perf_counter() - start, failure=text)
    return row(
        status="done",
        identity=seen,
        seconds=time.perf_counter() - start,
        bytes=size(tenant.target),
        kept=report.summary(),
    )


def threads(work: Work, tenants: Sequence[Tenant], *, jobs: int) -> Iterator[Row]:
    """Compress tenants in threads; yield each row as it ends.

    Reading and writing release the interpreter's lock, so they overlap with the
    computation. An interrupt waits for the tenants in flight, and begins no other.
    """
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        rows = [pool.submit(tend, work, x) for x in tenants]
        try:
            for row in concurrent.futures.as_completed(rows):
                yield row.result()
        finally:
            pool.shutdown(cancel_futures=True)
