"""The manifest of a fleet: one line of JSON for each tenant.

The first line holds the recipe: every option that decides how a child is made. Each
line is flushed before the next one is begun, and a line that a crash cut short is
removed. A restarted run therefore knows which tenants are done, and appends to the
same file. Runs on the host.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal, TypeVar

from para_jax._adapters.messages import Message, Remedy
from para_jax.formats import atomic

NAME = "manifest.jsonl"

T = TypeVar("T")
Recipe = Mapping[str, str | int | float | bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The result of compressing one tenant.

    Attributes:
      name: The tenant's name, the path of its child below the fleet's folder.
      source: The path of the parent.
      target: The path of the child.
      status: `done`, or `failed` and to be tried again.
      identity: A digest of the parent as it was read, see `tenants.identity`.
      seconds: The time from reading to writing.
      bytes: The size of the child's files.
      kept: The totals of the child's `Report`, as plain JSON values.
      failure: The reason if there is no child.
    """

    name: str
    source: str
    target: str
    status: Literal["done", "failed"]
    identity: str = ""
    seconds: float = 0.0
    bytes: int = 0
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """An open manifest.

    Attributes:
      file: The file, open for appending.
      rows: The last row of each tenant by name.
    """

    file: IO[bytes]
    rows: dict[str, Row]

    def append(self, row: Row) -> None:
        """Write one line, and flush it to disk."""
        self.file.write(_line(dataclasses.asdict(row)))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.rows[row.name] = row


@contextlib.contextmanager
def opened(
    folder: pathlib.Path, recipe: Recipe, *, overwrite: bool = False
) -> Iterator[Manifest]:
    """Open the manifest of the fleet in `folder`, under a lock.

    Args:
      folder: The fleet's folder; it is made if it does not exist.
      recipe: The options by which each child is made.
      overwrite: Whether to discard the old manifest.

    Raises:
      OSError: if the folder holds something else, or another run writes to it.
      ValueError: if its fleet was made by another recipe.
    """
    path = folder / NAME
    _check(folder, overwrite=overwrite)
    if path.exists() and not overwrite:
        _read(path, recipe)  # A wrong recipe is refused before anything is written.
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.alone(folder, _taken(folder)):
        if overwrite or not path.exists():
            with atomic.replacing_file(path, overwrite=overwrite) as new:
                new.write_bytes(_line({"recipe": dict(recipe)}))
        rows, whole = _read(path, recipe)
        os.truncate(path, whole)  # A line without its end was never acknowledged.
        with path.open("ab") as file:
            yield Manifest(file, rows)


def _check(folder: pathlib.Path, *, overwrite: bool) -> None:
    if not folder.exists() or (folder / NAME).is_file():
        return
    # A run that was killed at its very start left a hidden folder.
    inside = sorted(x.name for x in folder.iterdir() if not x.name.startswith("."))
    if adapter := set(inside).intersection(atomic.ADAPTER_FILES):
        raise FileExistsError(
            f"'{folder}' is an adapter (it holds '{min(adapter)}'), and no folder for "
            "many. Choose another place."
        )
    if inside and not overwrite:
        raise FileExistsError(
            Message(
                f"'{folder}' holds '{inside[0]}' and no {NAME}, so it is not a fleet "
                "to continue. Choose another place, or ",
                Remedy.OVERWRITE,
                ".",
            )
        )


def _read(path: pathlib.Path, recipe: Recipe) -> tuple[dict[str, Row], int]:
    """Read the last row of each tenant, and count the bytes of all whole lines."""
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    first, *rest = text[:whole].splitlines() or [b""]
    made = _parsed(path, 1, first, dict)
    _check_recipe(path.parent, made.get("recipe", {}), recipe)
    rows = [_parsed(path, number, line, Row) for number, line in enumerate(rest, 2)]
    return {row.name: row for row in rows}, whole


def _parsed(path: pathlib.Path, number: int, line: bytes, kind: type[T]) -> T:
    try:
        return kind(**json.loads(line))
    except (TypeError, ValueError) as error:
        raise ValueError(
            Message(
                f"'{path}' is not the manifest of a fleet: line {number} cannot be "
                f"read ({error}). Remove that line, or ",
                Remedy.OVERWRITE,
                ".",
            )
        ) from error


def _check_recipe(folder: pathlib.Path, made: Recipe, recipe: Recipe) -> None:
    for name in sorted(made.keys() | recipe.keys()):
        old, new = made.get(name, "not given"), recipe.get(name, "not given")
        if old != new:
            raise ValueError(
                Message(
                    f"'{folder}' holds a fleet that was made otherwise: {name} was "
                    f"{old}, and is {new} now. Choose another place, or ",
                    Remedy.OVERWRITE,
                    ".",
                )
            )


def _line(value: Mapping[str, Any]) -> bytes:
    # NaN is not JSON, and other readers would refuse the file.
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _taken(folder: pathlib.Path) -> OSError:
    return FileExistsError(
        f"Another run writes to '{folder}'. Wait for it, or choose another place."
    )
