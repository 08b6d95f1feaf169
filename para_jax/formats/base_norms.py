"""The Frobenius norms of a base model's kernels, for scores relative to them.

Runs on the host.
"""

import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors

from para_jax._adapters.adapter import Adapter, Adapters
from para_jax._adapters.checkpoint import Checkpoint, as_checkpoint
from para_jax._adapters.params import unnest

_LEAVES = ("kernel", "weight", "embedding", "w")

_SHOWN = 3  # Of many names.

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
      parent: A loaded checkpoint, or just its adapters by path.

    Returns:
      Numbers in float64; of a stack of kernels `[*stack]`.

    Raises:
      FileNotFoundError: if there are no tensors in the folder.
      ValueError: if an adapter's kernel is not among them, or has another size.
    """
    if isinstance(base, Mapping):
        found = unnest(base)
        tensors = {path: (lambda x=x: x) for path, x in found.items()}
    else:
        tensors = _in_folder(pathlib.Path(base))
    names = _by_module(tensors)
    result = {}
    for path, adapter in as_checkpoint(parent).adapters.items():
        name = _find(path, names)
        result[path] = _norm(path, adapter, name, tensors[names[name]]())
    return result


def _in_folder(folder: pathlib.Path) -> dict[str, Callable[[], np.ndarray]]:
    """Return what reads each tensor of a folder, by its name with slashes."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"'{folder}' holds no *.safetensors: give the folder of the base model, or "
            "its params."
        )

    def reader(file: pathlib.Path, name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with safetensors.safe_open(file, framework="numpy") as opened:
                return opened.get_tensor(name)

        return read

    result = {}
    for file in files:
        with safetensors.safe_open(file, framework="numpy") as opened:
            names = list(opened.keys())
        result |= {name.replace(".", "/"): reader(file, name) for name in names}
    return result


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
    found = [
        name
        for name in names
        if name and (name.endswith(f"/{path}") or path.endswith(f"/{name}"))
    ]
    if len(found) != 1:
        some = found or list(names)
        what = "several kernels" if found else "no kernel"
        raise ValueError(
            f"'{path}': the base has {what} of that path: {', '.join(some[:_SHOWN])}, "
            f"{len(some)} in all. Is it this adapter's base? Give its params with the "
            "adapter's paths."
        )
    return found[0]


def _norm(path: str, adapter: Adapter, name: str, kernel: Any) -> Any:
    size = math.prod(adapter.stack) * adapter.inputs * adapter.outputs
    # Some models have heads as an axis of their own, so sizes are what must agree.
    if np.size(kernel) != size or np.shape(kernel)[: len(adapter.stack)] != (
        adapter.stack
    ):
        raise ValueError(
            f"'{path}': its kernel '{name}' is {list(np.shape(kernel))}, expected "
            f"{[*adapter.stack, adapter.inputs, adapter.outputs]}, in any order of the "
            "last axes. Quantised weights have to be dequantised before."
        )
    rows = np.asarray(jax.device_get(kernel)).reshape(math.prod(adapter.stack), -1)
    # One kernel at a time in float64: the model need not fit twice.
    norms = [float(np.linalg.norm(x.astype(np.float64))) for x in rows]
    return np.reshape(norms, adapter.stack) if adapter.stack else norms[0]
