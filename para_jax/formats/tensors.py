"""safetensors files, read and written with errors that name the file."""

import errno
import hashlib
import json
import os
import pathlib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

_AT_ONCE = 16  # Tensors to read before the file is opened again.


def read(
    path: pathlib.Path, known: Mapping[str, np.ndarray] = types.MappingProxyType({})
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file.

    Args:
      path: The file.
      known: Arrays that are in memory already: one that is equal to the tensor of its
        name takes its place, so reading back what was written takes no memory.

    Raises:
      ValueError: if it is truncated, or its header is not true.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
        found = _each(path, names)
        return {name: shared(x, name, known) for name, x in found}, metadata
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is not a whole safetensors file ({error}). Download or save it "
            "again."
        ) from error


def _each(path: pathlib.Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a file, which itself never takes much memory.

    It is mapped, and what was touched of a map stays in memory until the file is
    closed. So it is closed now and then, and must be the same file again.
    """
    first = _identity(path)
    for start in range(0, len(names), _AT_ONCE):
        with safetensors.safe_open(path, framework="numpy") as file:
            if _identity(path) != first:
                raise ValueError("it was replaced while it was read")
            for name in names[start : start + _AT_ONCE]:
                yield name, file.get_tensor(name)


def _identity(path: pathlib.Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def shared(found: Any, name: str, known: Mapping[str, np.ndarray]) -> Any:
    """Returns the known array of this name if it is equal to what was found."""
    return known[name] if name in known and same(known[name], found) else found


def same(one: np.ndarray, two: np.ndarray) -> bool:
    """Returns whether two arrays are equal by the bits: both may hold the same NaN."""
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    if one.ndim > 2:  # Matrix by matrix, as each takes a copy.
        return all(map(same, one, two))
    return one.tobytes() == two.tobytes()


def write(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file, one tensor at a time.

    The library's own writer wants all of them contiguous in memory at once.

    Raises:
      OSError: if the disk is full or the file cannot be written.
      ValueError: if it cannot hold a dtype.
    """
    names = _ordered(tensors)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        x, start = tensors[name], end
        end += x.nbytes
        header[name] = {
            "dtype": _type(name, x.dtype),
            "shape": x.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_bytes(tensors[name]))


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of a file's tensors, without its header, as hexadecimal."""
    result = hashlib.sha256()
    for name in _ordered(tensors):
        result.update(_bytes(tensors[name]))
    return result.hexdigest()


def _ordered(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names as the library orders them.

    By this order each tensor starts at a multiple of its item's size.
    """
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _type(name: str, dtype: np.dtype) -> str:
    """Returns what safetensors calls a dtype, by asking it."""
    try:
        written = safetensors.numpy.save({"x": np.empty(0, dtype)})
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"'{name}' is of {dtype.name}, which a safetensors file cannot hold."
        ) from error
    return json.loads(written[8:])["x"]["dtype"]


def _bytes(x: np.ndarray) -> memoryview:
    little = np.ascontiguousarray(x, x.dtype.newbyteorder("<"))
    # A column of a matrix stays strided when it is flattened.
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def os_error(error: Exception, path: pathlib.Path) -> OSError:
    """Returns the system's error that a writer hid in the text of its own."""
    code = re.search(r"os.error\D{1,8}(\d+)", str(error))
    number = int(code[1]) if code else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def read_json(path: pathlib.Path) -> dict[str, object]:
    """Returns the object in a JSON file.

    Raises:
      ValueError: if it holds no JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(
            f"'{path}' holds a {type(value).__name__}, expected an object."
        )
    return value
