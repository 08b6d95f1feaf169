"""Rows of files: JSON, JSON lines, tables of tabs, HellaSwag's six lines, and pictures.

Each function reads one file, or one folder of pictures, and says where a bad row is.
Nothing is quoted in a table, and nothing is unpickled. Runs on the host.
"""

import bz2
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_ENDINGS = 4
_SUFFIX = ".png"
_SHOWN = 60
"""Characters of a bad value to show."""


class Row(NamedTuple):
    """A row with its place: the file and the line, for messages."""

    where: str
    values: Mapping[str, Any]


def json_list(path: pathlib.Path) -> Iterator[Row]:
    """Yield the objects of a JSON file that holds a list of them, strings all through.

    Raises:
      ValueError: if it holds anything else.
    """
    found = _parsed(_text(path), f"'{path}'")
    if not isinstance(found, list):
        raise ValueError(
            f"'{path}' holds {_shown(found)}, expected a list of objects. {_REMEDY}"
        )
    for number, value in enumerate(found, 1):
        yield _object(value, f"'{path}', row {number}")


def json_lines(path: pathlib.Path) -> Iterator[Row]:
    """Yield the objects of a file with one in each line, strings all through.

    Raises:
      ValueError: if a line holds anything else.
    """
    for number, line in enumerate(_lines(_text(path)), 1):
        where = f"'{path}', line {number}"
        yield _object(_parsed(line, where), where)


def table(path: pathlib.Path, names: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a table of tabs, whose first line has the columns' names.

    Args:
      path: The file.
      names: The columns of a file without such a line.

    Raises:
      ValueError: if a line has another number of fields.
    """
    lines = enumerate(_lines(_text(path)), 1)
    columns = tuple(names) or tuple(next(lines, (0, ""))[1].split("\t"))
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(columns):
            raise ValueError(
                f"'{path}', line {number}, has {len(fields)} fields: {_shown(line)}, "
                f"expected {len(columns)}: {', '.join(columns)}. {_REMEDY}"
            )
        row = dict(zip(columns, fields, strict=True))
        yield Row(f"'{path}', line {number}", row)


def endings(path: pathlib.Path) -> Iterator[Row]:
    """Yield HellaSwag's questions from a file of six lines each, packed by bzip2.

    The lines are the activity and the context behind a colon, the number of the right
    ending from 0, and the four endings. The columns have the hub's names.

    Raises:
      ValueError: if the lines are not such.
    """
    packed = path.read_bytes()
    try:
        found = bz2.decompress(packed)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' is no bzip2 file ({error}). {_REMEDY}") from error
    lines = _lines(_decoded(found, path))
    size = 2 + _ENDINGS
    for start in range(0, len(lines), size):
        question, label, *choices = (*lines[start : start + size], "", "")[:size]
        where = f"'{path}', line {start + 1}"
        activity, colon, context = question.partition(": ")
        if not colon or label not in map(str, range(_ENDINGS)) or not all(choices):
            raise ValueError(
                f"{where} begins {_shown(lines[start : start + size])}, expected "
                f"'ACTIVITY: CONTEXT', a number from 0 to {_ENDINGS - 1} and "
                f"{_ENDINGS} endings, a line each. {_REMEDY}"
            )
        values = {"activity_label": activity, "ctx": context, "label": label}
        yield Row(where, {**values, "endings": choices})


def pictures(path: pathlib.Path) -> Iterator[Row]:
    """Yield the PNG files of a folder with a folder for each class, in order.

    They are not opened: "image" is a path, and "label" the name of its class.
    """
    files = itertools.chain(*(sorted((path / x).iterdir()) for x in classes(path)))
    for file in files:
        if file.suffix == _SUFFIX:
            values = {"image": str(file.absolute()), "label": file.parent.name}
            yield Row(f"'{file}'", values)


def classes(path: pathlib.Path) -> tuple[str, ...]:
    """Return the names of the classes in a folder of pictures, sorted."""
    return tuple(sorted(x.name for x in path.iterdir() if x.is_dir()))


_REMEDY = "Is it damaged, or another file? Bring it here again."


def _text(path: pathlib.Path) -> str:
    return _decoded(path.read_bytes(), path)


def _decoded(found: bytes, path: pathlib.Path) -> str:
    try:
        return found.decode("utf-8-sig")  # Microsoft's files begin with a mark.
    except UnicodeDecodeError as error:
        raise ValueError(
            f"'{path}' is no text in UTF-8 ({error}). {_REMEDY}"
        ) from error


def _lines(text: str) -> list[str]:
    # `splitlines` would also split at characters that sentences may have.
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{where} is no JSON ({error}): {_shown(text)}. {_REMEDY}"
        ) from error


def _object(value: Any, where: str) -> Row:
    texts = isinstance(value, dict) and all(isinstance(x, str) for x in value.values())
    if not texts:
        raise ValueError(
            f"{where} is {_shown(value)}, expected an object of strings. {_REMEDY}"
        )
    return Row(where, value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
