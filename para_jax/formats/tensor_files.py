"""Read and write safetensors files, with errors that name the file."""

import contextlib
import hashlib
import io
import json
import math
import os
import pathlib
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from para_jax._adapters.adapter import check_dtype
from para_jax.formats import memory, other_files

# The names of dtypes in a safetensors file (its `tensor.rs`, 0.8.0). Those of 4 and 6
# bits (F4, F6_E2M3, F6_E3M2) are packed, which no NumPy array is.
_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
# Names of tensors beside a quantised one.
_SCALES = re.compile(
    r"\.(absmax|quant_map|quant_state\b.*|nested_absmax|nested_quant_map|SCB"
    r"|\w*_qdata|(\w+_)?weight_scale|scale_weight|weight_scale_inv)$"
)


def read(
    path: pathlib.Path, known: Mapping[str, np.ndarray] = types.MappingProxyType({})
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Args:
      path: The file.
      known: Arrays in memory already. Each replaces the tensor of its name if they are
        equal, so reading a file back takes no memory.

    Raises:
      ValueError: if the file is truncated, is a Git LFS pointer, has a false header, or
        holds a dtype that NumPy has no name for.
    """
    with _opened(path) as (file, names, metadata):
        entries, start = _header(file)
        for name in names:
            _check_factor(name, entries[name], path)
        sizes = [_size(entries[name]) for name in names]
        rooms = memory.rooms(sizes, own=[not _is_lora(name) for name in names])
        return {
            name: shared(_tensor(file, start, entries[name], name, room), name, known)
            for name, room in zip(names, rooms, strict=True)
        }, metadata


def each(path: pathlib.Path, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of these names one by one.

    Raises:
      KeyError: if there is no such tensor.
      ValueError: as `read`.
    """
    with _opened(path) as (file, _, _):
        entries, start = _header(file)
        for name in names:
            room = np.empty(_size(entries[name]), np.uint8)
            yield name, _tensor(file, start, entries[name], name, room)


@contextlib.contextmanager
def _opened(
    path: pathlib.Path,
) -> Iterator[tuple[io.BufferedReader, list[str], dict[str, str]]]:
    """Yield a file checked by the library, its names and its metadata.

    The library only checks the file. Its reader for NumPy knows no float8, and it maps
    the file, so every page it touched would stay in memory until it is closed.
    """
    with path.open("rb") as file:
        try:
            with safetensors.safe_open(path, framework="numpy") as checked:
                names, metadata = list(checked.keys()), dict(checked.metadata() or {})
        except (safetensors.SafetensorError, TypeError, ValueError) as error:
            other_files.check_pointer(path)
            if "unknown variant" in f"{error}":
                raise ValueError(
                    f"'{path}' holds a dtype unknown to safetensors "
                    f"{safetensors.__version__} ({error}). Install a newer safetensors."
                ) from error
            raise ValueError(
                f"'{path}' is not a whole safetensors file ({error}). Download or save "
                "it again."
            ) from error
        # The library opened the path by itself: it may have seen another file.
        if _identity(path.stat()) != _identity(os.fstat(file.fileno())):
            raise ValueError(f"'{path}' was replaced while it was read. Try again.")
        yield file, names, metadata


def _header(file: io.BufferedReader) -> tuple[dict[str, Any], int]:
    """Parse the entries of all tensors; return them and the start of the data."""
    length = int.from_bytes(file.read(8), "little")
    return json.loads(file.read(length)), 8 + length


def _check_factor(name: str, entry: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raise ValueError if a tensor belongs to a quantised factor.

    Before shapes are compared: a factor of 4 bits is packed into `[n / 2, 1]`.
    """
    if not _is_lora(name) or math.prod(entry["shape"]) == 1:
        return  # An alpha may be a whole number.
    if name.endswith(".bias_indices"):
        return  # Of LyCORIS's sparse bias.
    inside = f"'{name}' in {path.name}"
    if _SCALES.search(name):
        raise ValueError(
            f"{inside} is what quantised factors are scaled by (bitsandbytes, torchao, "
            "scaled float8), which is not read. Dequantise them with the program that "
            "wrote them, and save them in bfloat16."
        )
    if len(entry["shape"]) > 1:  # A `reshape_weight` beside factors is two numbers.
        check_dtype(inside, _dtype(name, entry))


def _is_lora(name: str) -> bool:
    return "lora" in name.lower()


def _dtype(name: str, entry: Mapping[str, Any]) -> np.dtype:
    if (dtype := _DTYPES.get(entry["dtype"])) is None:
        raise ValueError(
            f"'{name}' is of {entry['dtype']}, which NumPy cannot hold. Store it in "
            "bfloat16."
        )
    return dtype


def _size(entry: Mapping[str, Any]) -> int:
    first, last = entry["data_offsets"]
    return last - first


def _tensor(
    file: io.BufferedReader,
    start: int,
    entry: Mapping[str, Any],
    name: str,
    room: np.ndarray,
) -> np.ndarray:
    """Read one tensor into memory of its size, and return it as a view."""
    dtype = _dtype(name, entry)
    file.seek(start + entry["data_offsets"][0])
    if file.readinto(room.data) != room.size:
        raise ValueError(f"'{name}' is incomplete: the file was cut while it was read.")
    # The format is little-endian.
    stored = room.view(dtype.newbyteorder("<")).reshape(entry["shape"])
    return stored if sys.byteorder == "little" else stored.astype(dtype)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def shared(found: Any, name: str, known: Mapping[str, np.ndarray]) -> Any:
    """Return the known array of this name if it equals the tensor, else the tensor."""
    return known[name] if name in known and same(known[name], found) else found


def same(one: np.ndarray, two: np.ndarray) -> bool:
    """Compare two arrays by their bits: both may hold the same NaN."""
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    # The same memory, as of a file that was read back into the arrays it was made of.
    if one.__array_interface__ == two.__array_interface__:
        return True
    if one.ndim > 2:  # `tobytes` copies: one matrix at a time.
        return all(map(same, one, two))
    return one.tobytes() == two.tobytes()


def write(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, one tensor at a time.

    The library's own writer needs all of them contiguous in memory at once.

    Raises:
      OSError: if the disk is full or the file cannot be written.
      ValueError: if it cannot hold a dtype.
    """
    names = _ordered(tensors)
    # A type is looked up by writing a file of it, hence once.
    first = {tensors[name].dtype: name for name in reversed(names)}
    types = {dtype: _type(name, dtype) for dtype, name in first.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        x, start = tensors[name], end
        end += x.nbytes
        header[name] = {
            "dtype": types[x.dtype],
            "shape": x.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    # Aligned as the library aligns it, so that readers can map the data as arrays.
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
    """Return safetensors' name of a dtype."""
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


def os_error(error: Exception, path: pathlib.Path) -> OSError | None:
    """Extract the system's error from the text of a writer's, if any."""
    code = re.search(r"os.error\D{1,8}(\d+)", str(error))
    if code is None:
        return None
    number = int(code[1])
    return OSError(number, os.strerror(number), str(path))


def read_json(path: pathlib.Path) -> dict[str, object]:
    """Read the object in a JSON file.

    Raises:
      ValueError: if it holds no JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        other_files.check_pointer(path)
        raise ValueError(f"'{path}' is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(
            f"'{path}' holds a {type(value).__name__}, expected an object."
        )
    return value
