"""Files of rows: JSON with one row a line, and their circumstances at the head.

Reading says which file, row and field is wrong. Floats have six digits. Runs on the
host.
"""

import dataclasses
import functools
import json
import pathlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from train.experiments.rows import TASKS, Cost, Row, Spectrum

R = TypeVar("R", Row, Spectrum, Cost)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results(Generic[R]):
    """The contents of one file.

    Attributes:
      command: The command behind the rows.
      commit: The commit of that code.
      versions: The versions of the libraries, by name.
      device: The device of the runs.
      configs: The settings of each run, by the name that rows have for them.
      rows: The results.
    """

    command: str
    commit: str
    versions: Mapping[str, str]
    device: str
    configs: Mapping[str, Mapping[str, Any]]
    rows: Sequence[R]


_HEAD = {"command": str, "commit": str, "versions": dict, "device": str}
_HEAD |= {"configs": dict, "rows": list}


def write(path: pathlib.Path, results: Results[R]) -> None:
    """Write the file atomically.

    Raises:
      ValueError: as `read` would, of the written file.
    """
    raw = {name: getattr(results, name) for name in _HEAD}
    raw["rows"] = [_record(row) for row in results.rows]
    if results.rows:
        # Validated as a reader would, so that no unreadable file is written.
        _parse(raw, type(results.rows[0]), path)
    # One row a line: a change of results is readable in git.
    head = [f'"{k}": {_json(raw[k])}' for k in _HEAD if k not in ("configs", "rows")]
    configs = [f"{_json(k)}: {_json(v)}" for k, v in raw["configs"].items()]
    head.append('"configs": {\n' + ",\n".join(configs) + "\n}")
    head.append('"rows": [\n' + ",\n".join(map(_json, raw["rows"])) + "\n]")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: readers see the old file or the new one.
    part = path.with_name(f"{path.name}.part")
    part.write_text("{\n" + ",\n".join(head) + "\n}\n")
    part.replace(path)


def read(path: pathlib.Path, kind: type[R]) -> Results[R]:
    """Read a file of results.

    Args:
      path: A file by `write`.
      kind: The type of its rows.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if it is not of this form. The message names file, row and field.
    """
    try:
        # JSON has no NaN, but Python's reader accepts it.
        raw = json.loads(path.read_text(), parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    return _parse(raw, kind, path)


def _parse(raw: Any, kind: type[R], path: pathlib.Path) -> Results[R]:
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds {_name(raw)}, expected an object with rows.")
    for name, wanted in _HEAD.items():
        if not isinstance(raw.get(name), wanted):
            raise ValueError(
                f"{path}: `{name}` is {_name(raw.get(name))}, expected "
                f"{wanted.__name__}. Was this file written by para_jax's experiments?"
            )
    rows, seen = [], {}
    for number, record in enumerate(raw["rows"], 1):
        where = f"{path}, row {number}"
        row = _row(record, kind, where)
        if row.key in seen:
            raise ValueError(
                f"{where} has the same key as row {seen[row.key]}: "
                f"{', '.join(map(str, row.key))}."
            )
        if isinstance(row, Row) and row.config not in raw["configs"]:
            known = ", ".join(raw["configs"]) or "none"
            raise ValueError(
                f"{where}: `config` is '{row.config}', which `configs` does not hold: "
                f"{known}."
            )
        seen[row.key] = number
        rows.append(row)
    head = {name: raw[name] for name in _HEAD if name != "rows"}
    return Results(**head, rows=rows)


def _row(record: Any, kind: type[R], where: str) -> R:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is {_name(record)}, expected an object.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if foreign := record.keys() - fields.keys():
        raise ValueError(
            f"{where} has a foreign field '{min(foreign)}', expected only: "
            f"{', '.join(fields)}."
        )
    types = _types(kind)
    values = {}
    for name, field in fields.items():
        if name not in record and field.default is dataclasses.MISSING:
            raise ValueError(f"{where} has no field `{name}`.")
        values[name] = _value(
            record.get(name), types[name], kind.limits.get(name), f"{where}: `{name}`"
        )
    if (task := values.get("task", TASKS[0])) not in TASKS:
        known = ", ".join(TASKS)
        raise ValueError(f"{where}: `task` is '{task}', expected one of {known}.")
    return kind(**values)


@functools.cache  # Slow, and asked for with every row.
def _types(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(
    value: Any, wanted: Any, limits: tuple[float, float] | None, where: str
) -> Any:
    """Return the value, with lists converted to tuples."""
    accepts, words = _TYPES[wanted]
    if not accepts(value):
        raise ValueError(f"{where} is {_name(value)}, expected {words}.")
    result = tuple(value) if isinstance(value, list) else value
    for number in _numbers(result):
        if limits and number is not None and not limits[0] <= number <= limits[1]:
            raise ValueError(
                f"{where} is {number}, expected {limits[0]:g} to {limits[1]:g}."
            )
    return result


def _numbers(x: Any) -> Sequence[Any]:
    """Return all numbers in a value."""
    if isinstance(x, Mapping):
        return tuple(x.values())
    return x if isinstance(x, tuple) else (x,)


def _is_int(x: Any) -> bool:
    # In Python a bool is an int.
    return isinstance(x, int) and not isinstance(x, bool)


def _is_number(x: Any) -> bool:
    return _is_int(x) or isinstance(x, float)


_TYPES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    str: (lambda x: isinstance(x, str), "text"),
    int: (_is_int, "a whole number"),
    float: (_is_number, "a number"),
    int | None: (lambda x: x is None or _is_int(x), "a whole number or null"),
    float | None: (lambda x: x is None or _is_number(x), "a number or null"),
    tuple[float, ...]: (
        lambda x: isinstance(x, list) and all(map(_is_number, x)),
        "a list of numbers",
    ),
    Mapping[str, float] | None: (
        lambda x: (
            x is None or (isinstance(x, dict) and all(map(_is_number, x.values())))
        ),
        "numbers by name, or null",
    ),
}


def _record(row: Row | Spectrum | Cost) -> dict[str, Any]:
    """Return the row without None, floats rounded."""
    values = {x.name: getattr(row, x.name) for x in dataclasses.fields(row)}
    return {name: _rounded(x) for name, x in values.items() if x is not None}


def _rounded(x: Any) -> Any:
    if isinstance(x, float):
        # Six digits: reproducible across machines, and half the size.
        return float(f"{x:.6g}")
    if isinstance(x, Mapping):
        return {name: _rounded(y) for name, y in x.items()}
    return [_rounded(y) for y in x] if isinstance(x, tuple) else x


def _json(x: Any) -> str:
    return json.dumps(x, allow_nan=False)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


def _name(x: Any) -> str:
    return "missing" if x is None else f"{type(x).__name__} {json.dumps(x)[:40]}"
