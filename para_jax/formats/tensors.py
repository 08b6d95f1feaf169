"""safetensors files, read and written with errors that name the file."""

import errno
import json
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file.

    Raises:
      ValueError: if it is truncated, or its header is not true.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is not a whole safetensors file ({error}). Download or save it "
            "again."
        ) from error


def write(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file.

    Raises:
      OSError: if the disk is full or the file cannot be written.
    """
    # Not ascontiguousarray, which gives a scalar an axis.
    whole = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # safetensors makes a file that only its owner reads.
    try:
        safetensors.numpy.save_file(whole, path, metadata=dict(metadata))
    except safetensors.SafetensorError as error:
        raise os_error(error, path) from error
    path.chmod(mode)


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
