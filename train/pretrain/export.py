"""Model folders in the format of transformers: `config.json`, `model.safetensors`.

The inverse of `train.models.checkpoint.load`, for models trained here. Runs on the
host.
"""

import collections
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from para_jax import unnest
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
    """Write a model in bfloat16.

    Args:
      folder: The target; it is made if necessary.
      params: Nested params.
      leaves: The tensors of each of them.
      config: The values of `config.json`, without the dtype.
      base: The prefix of the tensors' names.

    Raises:
      ValueError: if the params do not match `leaves`.
    """
    arrays = unnest(params)
    if arrays.keys() != leaves.keys():
        raise ValueError(
            f"The params have {sorted(arrays.keys() - leaves.keys())} too many, and "
            f"lack {sorted(leaves.keys() - arrays.keys())}."
        )
    parts = collections.defaultdict(list)
    for path, leaf in leaves.items():
        array = np.asarray(arrays[path])
        slices = array if leaf.stacked else array[None]
        for name, x in zip(leaf.names, slices, strict=True):
            parts[base + name].append(_Part(leaf.convert, x))
    tensors = {name: _tensor(x) for name, x in parts.items()}
    # Only now: an error above leaves no folder.
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / checkpoint.WEIGHTS).write_bytes(data)
    text = json.dumps(dict(config) | {"dtype": "bfloat16"}, indent=2)
    (folder / configuration.FILE).write_text(text + "\n")


class _Part(NamedTuple):
    """An array of the params, and its extraction from a tensor."""

    convert: Callable[[np.ndarray], np.ndarray]
    array: np.ndarray


def _tensor(parts: Sequence[_Part]) -> np.ndarray:
    """Return the tensor of these arrays, one or several of one shape.

    Each conversion picks entries of the tensor. Which, is found out by converting their
    places; so none needs an inverse.
    """
    places = _places(parts[0], len(parts))
    # Stored in bfloat16, as transformers' own models of this kind are.
    tensor = np.empty(places.size, jnp.bfloat16)
    for part in parts:
        # `convert` applied to indices says where each entry of the array is stored.
        tensor[part.convert(places)] = part.array
    return tensor.reshape(places.shape)


def _places(part: _Part, parts: int) -> np.ndarray:
    """Return 0, 1, 2, ... in the shape of a tensor with as many parts."""
    own = part.array.shape
    kernel = own[-1:] + own[-2:-1] + own[:-2]  # PyTorch's [n, m, *window].
    # Both layouts are tried: a kernel is transposed, other params are not.
    for rows, *others in (kernel, own):
        shape = (parts * rows, *others)
        places = np.arange(math.prod(shape)).reshape(shape)
        if part.convert(places).shape == own:
            return places
    raise ValueError(f"No tensor of {own} or {kernel}, {parts} times, gives {own}.")
