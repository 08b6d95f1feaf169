"""safetensors files, read and written with errors that name the file."""

import json
import pathlib
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
    """Writes a safetensors file."""
    # Not ascontiguousarray, which gives a scalar an axis.
    whole = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    safetensors.numpy.save_file(whole, path, metadata=dict(metadata))


def read_json(path: pathlib.Path) -> dict[str, object]:
    """Returns the object in a JSON file.

    Raises:
      ValueError: if it holds no JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(
            f"'{path}' holds a {type(value).__name__}, expected an object."
        )
    return value
