"""Model folders as transformers saves them: `config.json` and `model.safetensors`.

The inverse of `train.models.checkpoint.load`, for models trained here. Host code.
"""

import collections
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from para_jax.params import unnest
from train.models import checkpoint, configuration
from train.models.checkpoint import Leaf


def save(
    folder: pathlib.Path,
    params: Mapping[str, Any],
    leaves: Mapping[str, Leaf],
    config: Mapping[str, Any],
    *,
    base: str = "",
) -> None:
    """Writes a model in bfloat16.

    Args:
      folder: Where to; it is made if it is not there.
      params: Nested params.
      leaves: Which tensors each of them is made of.
      config: The values of `config.json`, without the dtype.
      base: What stands before the tensors' names.

    Raises:
      ValueError: if the params are not those of `leaves`.
    """
    arrays = unnest(params)
    if arrays.keys() != leaves.keys():
        raise ValueError(
            f"The params have {sorted(arrays.keys() - leaves.keys())} too many, and "
            f"lack {sorted(leaves.keys() - arrays.keys())}."
        )
    parts = collections.defaultdict(list)
    for path, leaf in leaves.items():
        for name, tensor in _tensors(path, leaf, np.asarray(arrays[path])).items():
            parts[base + name].append(tensor)
    # What several params are parts of, as PyTorch's own attention is, has them in turn.
    tensors = {
        name: np.ascontiguousarray(np.concatenate(x), jnp.bfloat16)
        for name, x in parts.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / checkpoint.WEIGHTS).write_bytes(data)
    text = json.dumps(dict(config) | {"dtype": "bfloat16"}, indent=2)
    (folder / configuration.FILE).write_text(text + "\n")


def _tensors(path: str, leaf: Leaf, array: np.ndarray) -> dict[str, np.ndarray]:
    slices = array if leaf.stacked else array[None]
    is_kernel = path.endswith("/kernel")
    return {
        name: _transposed(x) if is_kernel else x
        for name, x in zip(leaf.names, slices, strict=True)
    }


def _transposed(x: np.ndarray) -> np.ndarray:
    """Returns PyTorch's weight `[n, m, *window]`. Inverse: `checkpoint.transposed`."""
    return np.transpose(x, (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)))
