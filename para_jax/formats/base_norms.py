"""The Frobenius norms of a base model's kernels, for scores relative to them.

Runs on the host.
"""

import functools
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors

from para_jax._adapters import sharing
from para_jax._adapters.adapter import Adapter, Adapters
from para_jax._adapters.checkpoint import Checkpoint, as_checkpoint
from para_jax._adapters.params import unnest

_LEAVES = ("kernel", "weight", "embedding", "w")

_SHOWN = 3  # Of many names.
_REMEDY = "Give its params under the adapter's paths."

# Under the names of NumPy and of safetensors. The bytes of quantised weights are none.
_DTYPES = ("float16", "bfloat16", "float32", "float64", "F16", "BF16", "F32", "F64")


class Tensor(NamedTuple):
    """A tensor of the base: its dtype, and what reads it."""

    dtype: str
    read: Callable[[], Any]


Base = Mapping[str, Any] | str | os.PathLike[str]


def kernel_norms(
    base: Base, parent: Checkpoint | Adapters
) -> dict[str, np.ndarray | float]:
    """Return the Frobenius norm of the kernel that each adapter updates, by path.

    For `Score(norms=...)`. Kernels are found by the adapters' paths, with any prefix:
    `bert/encoder/layer/0/query` is the tensor `encoder.layer.0.query.weight` too.

    Example:
      >>> base = {"down": {"kernel": np.eye(7, 5)}, "up": {"kernel": np.eye(5, 7)}}
      >>> norms = para_jax.kernel_norms(base, adapters)
      >>> {path: round(float(norm), 3) for path, norm in norms.items()}
      {'down': 2.236, 'up': 2.236}
      >>> policy = para_jax.Gamma(0.5, score=para_jax.Score(norms=norms))

    Args:
      base: The base's params, nested or by path; or the folder of a model with
        safetensors, which are read tensor by tensor. Not quantised.
      parent: A loaded checkpoint, or just its adapters by path. Of modules that share
        an update, the owner alone is looked up.

    Returns:
      Numbers in float64; of a stack of kernels `[*stack]`.

    Raises:
      FileNotFoundError: if there are no tensors in the folder.
      ValueError: if an adapter's kernel is not among them, is that of two adapters,
        has another size, or is quantised; or a file is damaged.
    """
    tensors = _in_tree(base) if isinstance(base, Mapping) else _in_folder(base)
    names, result = _by_module(tensors), {}
    owners: dict[str, str] = {}
    # Modules that share an update have one owner, and often one tensor.
    for path, adapter in sharing.owners(as_checkpoint(parent)).items():
        name = _find(path, names)
        if owners.setdefault(name, path) != path:
            raise ValueError(
                f"'{path}' and '{owners[name]}' would both be the kernel "
                f"'{names[name]}'. Is it this adapter's base? {_REMEDY}"
            )
        result[path] = _norm(path, adapter, names[name], tensors[names[name]])
    return result


def _in_tree(base: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what gives each array of nested params, by its path."""

    def tensor(x: Any) -> Tensor:
        return Tensor(str(getattr(x, "dtype", type(x).__name__)), lambda: x)

    return {path: tensor(x) for path, x in unnest(base).items()}


def _in_folder(place: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return what reads each tensor of a folder, by its name with slashes."""
    folder = pathlib.Path(place)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"'{folder}' holds no *.safetensors: give the folder of the base model, or "
            "its params."
        )
    return {name: x for file in files for name, x in _in_file(file).items()}


def _in_file(file: pathlib.Path) -> dict[str, Tensor]:
    def read(name: str) -> np.ndarray:
        # Opened for every tensor: what was touched of a map stays in memory.
        with safetensors.safe_open(file, framework="numpy") as opened:
            return opened.get_tensor(name)

    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            dtypes = {x: opened.get_slice(x).get_dtype() for x in list(opened.keys())}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"'{file}' is not a whole safetensors file ({error}). Download it again."
        ) from error
    return {
        name.replace(".", "/"): Tensor(dtype, functools.partial(read, name))
        for name, dtype in dtypes.items()
    }


def _by_module(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return the path of each module's kernel, by the module's."""
    result = {}
    for path in tensors:
        module, _, leaf = path.rpartition("/")
        result[module if leaf in _LEAVES else path] = path
    return result


def _find(path: str, names: Mapping[str, str]) -> str:
    """Return the one module whose path ends in an adapter's, or the other way round."""
    if path in names:
        return path
    found = [name for name in names if name.endswith(f"/{path}")]
    if not found:
        # Of several ends of the path the longest one says the most.
        ends = [name for name in names if name and path.endswith(f"/{name}")]
        found = sorted(ends, key=len)[-1:]
    if len(found) != 1:
        some = found or list(names)
        what = "several kernels" if found else "no kernel"
        raise ValueError(
            f"'{path}': the base has {what} of that path, got {len(some)}: "
            f"{', '.join(some[:_SHOWN])}. Is it this adapter's base? {_REMEDY}"
        )
    return found[0]


def _norm(path: str, adapter: Adapter, name: str, tensor: Tensor) -> Any:
    if tensor.dtype not in _DTYPES:
        raise ValueError(
            f"'{path}': its kernel '{name}' is of {tensor.dtype}, expected a floating "
            "point of 16 to 64 bits. Quantised weights have to be dequantised before."
        )
    kernel = tensor.read()
    stack = tuple(adapter.stack)
    size = math.prod(stack) * adapter.inputs * adapter.outputs
    # Some models have heads as an axis of their own, so sizes are what must agree.
    if np.size(kernel) != size or np.shape(kernel)[: len(stack)] != stack:
        raise ValueError(
            f"'{path}': its kernel '{name}' is {list(np.shape(kernel))}, expected "
            f"{[*stack, adapter.inputs, adapter.outputs]}, in any order of the last "
            f"axes. Is it this adapter's base? {_REMEDY}"
        )
    rows = np.asarray(jax.device_get(kernel)).reshape(math.prod(stack), -1)
    # One kernel at a time in float64: the model need not fit twice.
    norms = [float(np.linalg.norm(x.astype(np.float64))) for x in rows]
    return np.reshape(norms, stack) if stack else norms[0]
