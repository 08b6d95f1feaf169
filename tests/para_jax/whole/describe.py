"""Record texts, arrays, files and values for the golden run, and compare them.

The bits of a singular value differ between processors, builds of BLAS and versions of
JAX. So each record has the sha256 of the original, for the machine that wrote it, and a
description that holds on every machine: numbers to some digits, all else unchanged.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from orbax.checkpoint import v1 as ocp

import para_jax as para

LONG = 700  # Characters; of a longer text the record has a digest.
MANY = 16  # Arrays; of more the record has their sum.
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
}
_VOLATILE = (
    (re.compile(r'("(?:\w+_)?seconds": )[-+.\de]+'), r"\1 0"),
    (re.compile(r'("identity": )"\w+"'), r'\1""'),
    (re.compile(r'("\w+_timestamp_nsecs": )\d+'), r"\1 0"),
    (re.compile(r"\b\d+(\.\d+)? (s|ms|tenants/s)(?!\w)"), r"# \2"),
)


@dataclasses.dataclass(frozen=True)
class How:
    """Say how to record something.

    Attributes:
      places: The placeholder of each folder with a path that differs from run to run.
      full: Whether to keep long values in full.
      unsigned: Whether to ignore the signs of numbers.
    """

    places: Mapping[str, str]
    full: bool = False
    unsigned: bool = False


@dataclasses.dataclass(frozen=True)
class Unsigned:
    """Factors with signs an SVD leaves open, differently on each platform."""

    value: Any


def sha(data: bytes | str) -> str:
    data = data.encode() if isinstance(data, str) else data
    return hashlib.sha256(data).hexdigest()


def text(words: str, how: How) -> Any:
    """Return the record of a text.

    Args:
      words: The text.
      how: How to record it.
    """
    for path, name in how.places.items():
        words = words.replace(path, name)
    for pattern, new in _VOLATILE:
        words = pattern.sub(new, words)
    floats = [float(x) for x in _NUMBER.findall(words) if not _whole(x)]
    if len(words) <= LONG or how.full:
        if not floats:
            return words
        short = _NUMBER.sub(lambda x: _rounded(x[0]), words)
        return words if short == words else {"sha256": sha(words), "text": short}
    total = float(np.abs(floats).sum())
    skeleton = sha(_NUMBER.sub(lambda x: x[0] if _whole(x[0]) else "#", _loose(words)))
    return {"sha256": sha(words), "skeleton": skeleton, "total": _digits(total)}


def _loose(words: str) -> str:
    """Remove line breaks and quotes from words, as Python versions differ in them."""
    return " ".join(words.replace("'", "").split())


def _whole(number: str) -> bool:
    return number.removeprefix("-").isdigit()


def _rounded(number: str) -> str:
    return number if _whole(number) else _digits(float(number))


def _digits(x: float) -> str:
    """Return a float to five digits, with a decimal point even if it is whole."""
    found = f"{x:.5g}"
    return f"{found}.0" if _whole(found) else found


def array(x: Any, how: How) -> dict[str, Any]:
    """Return the record of an array."""
    x = np.asarray(x)
    found = {"dtype": x.dtype.name, "shape": list(x.shape)}
    if x.dtype.kind in "biu":
        return found | {"exact": sha(x.tobytes())}
    return found | {"sha256": sha(x.tobytes())} | _size([x], how)


def arrays(found: Mapping[str, Any], how: How) -> dict[str, Any]:
    """Return the record of arrays by name; of many, their common properties."""
    found = {name: np.asarray(x) for name, x in found.items()}
    if len(found) <= MANY or how.full:
        return {name: array(x, how) for name, x in sorted(found.items())}
    names = sorted(found)
    lines = [f"{x} {found[x].dtype.name} {found[x].shape}" for x in names]
    bits = "".join(sha(found[x].tobytes()) for x in names)
    some = {"arrays": len(found), "names": sha("\n".join(lines)), "sha256": sha(bits)}
    ranks = [min(found[x].shape, default=0) for x in names]
    return some | {"smallest": " ".join(map(str, ranks))} | _size(found.values(), how)


def _size(found: Any, how: How) -> dict[str, str]:
    """Return the norm, and a sum sensitive to places and signs."""
    norm = dot = 0.0
    for x in found:
        flat = np.ravel(x).astype(np.float64)
        flat = np.abs(flat) if how.unsigned else flat
        norm += float(flat @ flat)
        dot += float(flat @ np.cos(np.arange(flat.size)))
    return {"norm": _digits(norm**0.5), "dot": _digits(dot)}


def value(x: Any, how: How) -> Any:
    """Return the record of a call's result."""
    if x is None or isinstance(x, bool | int):
        return x
    if isinstance(x, str):
        return text(x, how)
    if isinstance(x, float | np.floating):
        return text(repr(float(x)), how)
    if isinstance(x, Unsigned):
        return value(x.value, dataclasses.replace(how, unsigned=True))
    if isinstance(x, jax.Array | np.ndarray):
        return array(x, how)
    if isinstance(x, para.Report | para.Inspection):
        return text(json.dumps(x.as_dict()), how)
    if isinstance(x, Mapping) and x and all(isinstance(y, np.ndarray) for y in x):
        return arrays(x, how)
    if isinstance(x, Mapping):
        return {str(k): value(y, how) for k, y in x.items()}
    if dataclasses.is_dataclass(x):
        fields = {y.name: getattr(x, y.name) for y in dataclasses.fields(x)}
        return value(fields, how)
    if isinstance(x, tuple | list):
        return [value(y, how) for y in x]
    return value(str(x), how)


def files(root: pathlib.Path, how: How) -> dict:
    """Return the record of all files below a folder, by path."""
    found = {}
    inside: list[pathlib.Path] = []
    for path in sorted(root.rglob("*")):
        if any(x in path.parents for x in inside):
            continue
        name = path.relative_to(root).as_posix()
        if (path / "_CHECKPOINT_METADATA").is_file():
            inside.append(path)
            found[name] = _orbax(path, how)
        elif path.is_symlink():
            found[name] = f"a link to {path.readlink()}"
        elif path.is_file():
            found[name] = _file(path, how)
        elif not any(path.iterdir()):
            found[name] = "an empty folder"
    return found


def _file(path: pathlib.Path, how: How) -> Any:
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        metadata, tensors = _tensors(data)
        return {
            "sha256": sha(data),
            "metadata": text(metadata, how),
            "tensors": arrays(tensors, how),
        }
    if path.suffix == ".png":
        size = [int.from_bytes(data[i : i + 4]) for i in (16, 20)]
        return {"sha256": sha(data), "picture": size}
    if path.suffix == ".jsonl":  # Lines are in completion order.
        first, *rest = data.decode().splitlines(keepends=True)
        data = "".join([first, *sorted(rest)]).encode()
    return text(data.decode(), how)


def _tensors(data: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """Return the metadata and the tensors of a safetensors file, also of float8."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = json.dumps(header.pop("__metadata__", {}), sort_keys=True)
    tensors = {}
    for name, x in header.items():
        first, last = (start + i for i in x["data_offsets"])
        values = np.frombuffer(data[first:last], _DTYPES[x["dtype"]])
        tensors[name] = values.reshape(x["shape"])
    return metadata, tensors


def _orbax(path: pathlib.Path, how: How) -> Any:
    """Return the record of a checkpoint; its own files differ from run to run."""
    tree = ocp.metadata(path).metadata
    tree = ocp.load(path, jax.tree.map(lambda _: np.ndarray, tree))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    metadata = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    words = json.dumps(metadata["custom_metadata"], sort_keys=True)
    return {
        "checkpoint": text(words, how),
        "leaves": arrays({jax.tree_util.keystr(k): x for k, x in leaves}, how),
    }


def differences(old: Any, new: Any, *, exact: bool, at: str = "") -> list[str]:
    """Return the differences between two records, one line each.

    Args:
      old: The recorded value.
      new: The present value.
      exact: Whether every bit counts.
      at: The place, for the lines.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        lines = [f"{at}/{x} is gone" for x in old if x not in new]
        lines += [f"{at}/{x} is new" for x in new if x not in old]
        for name in old:
            if name in new and not (name == "sha256" and not exact):
                size = float(old["norm"]) if name == "dot" and "norm" in old else 0.0
                lines += _compared(old[name], new[name], exact, f"{at}/{name}", size)
        return lines
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return [f"{at} had {len(old)} entries, and has {len(new)}"]
        pairs = enumerate(zip(old, new, strict=True))
        return [
            line
            for i, (x, y) in pairs
            for line in differences(x, y, exact=exact, at=f"{at}/{i}")
        ]
    return _compared(old, new, exact, at, 0.0)


def _compared(old: Any, new: Any, exact: bool, at: str, size: float) -> list[str]:
    if isinstance(old, dict | list) and type(old) is type(new):
        return differences(old, new, exact=exact, at=at)
    same = old == new
    if not same and not exact and isinstance(old, str) and isinstance(new, str):
        same = _alike(old, new, size)
    return [] if same else [f"{at} was {old!r}, and is {new!r}"]


def _alike(old: str, new: str, size: float) -> bool:
    """Compare texts but for the last digits of numbers, line breaks and quotes."""
    words = [_NUMBER.sub("#", _loose(x)) for x in (old, new)]
    one, two = (_NUMBER.findall(x) for x in (old, new))
    return (
        words[0] == words[1]
        and len(one) == len(two)
        and all(_near(x, y, size) for x, y in zip(one, two, strict=True))
    )


def _near(one: str, two: str, size: float) -> bool:
    if _whole(one) and _whole(two):
        return one == two
    return math.isclose(
        float(one), float(two), rel_tol=1e-3, abs_tol=1e-3 * size + 1e-9
    )
