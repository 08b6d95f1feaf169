"""Weights of Hugging Face models, read tensor by tensor into nested params.

The files are safetensors: one `model.safetensors`, or shards listed in
`model.safetensors.index.json`; or else one GGUF file, whose tensors are dequantised. A
model states its tensors as `Leaf`s, and every tensor on either side must find its
counterpart. Runs on the host.
"""

import dataclasses
import fnmatch
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.typing
import numpy as np
import safetensors

from para_jax import nest
from para_jax.formats import tensor_files
from train.models import gguf_file, gguf_weights

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def unchanged(x: np.ndarray) -> np.ndarray:
    """Return the tensor itself."""
    return x


def transposed(x: np.ndarray) -> np.ndarray:
    """Convert PyTorch's weight `[n, m, *window]` to a kernel `[*window, m, n]`."""
    return np.transpose(x, (*range(2, x.ndim), 1, 0))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the params, and its tensors in the file.

    Attributes:
      names: The tensors. Several are stacked on a leading layer axis in this order. One
        tensor may be in several leaves, each with its part of it.
      shape: The array's shape, with that axis.
      convert: Makes a slice of the array out of one tensor, such as `transposed`.
      stacked: Whether there is a layer axis, which may be of size 1.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray] = unchanged
    stacked: bool = False

    @property
    def part(self) -> tuple[int, ...]:
        """The required shape of one tensor."""
        return self.shape[1:] if self.stacked else self.shape


class _Tensor(NamedTuple):
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def load(
    folder: pathlib.Path,
    leaves: Mapping[str, Leaf],
    *,
    dtype: jax.typing.DTypeLike | None = None,
    ignored: Sequence[str] = (),
    bases: Sequence[str] = ("",),
) -> dict[str, Any]:
    """Load the params of a model from its folder, as NumPy arrays.

    It never takes more memory than the params and one tensor. Mismatches are found
    in the files' headers, before any tensor is read.

    Args:
      folder: The folder with the files of the model.
      leaves: The tensors of the params, by slash-joined path.
      dtype: The dtype of all params. By default the tensors' own; of a GGUF file,
        float32.
      ignored: Patterns, as in `text_model.*`, of tensors that are not wanted.
      bases: Possible prefixes of all names of `leaves`: a model is saved alone, or as
        the part `vision_model.` of another. The first that a tensor has is taken.

    Raises:
      FileNotFoundError: if there are no weights, or the index names a file that is not
        there.
      ModuleNotFoundError: if a GGUF file is to be read without the package `gguf`.
      ValueError: if a file is damaged, contradicts the index, or has other tensors than
        the model; it lists all that are missing, unexpected or misshapen.
    """
    found = _find(folder)
    # The first prefix with any match: a head's tensors may lack it.
    base = next((x for x in bases if any(y.startswith(x) for y in found)), bases[0])
    leaves = {path: _below(base, leaf) for path, leaf in leaves.items()}
    wanted = [(name, leaf) for leaf in leaves.values() for name in leaf.names]
    _check(folder, found, wanted, ignored)
    type_ = None if dtype is None else np.dtype(dtype)
    return nest({x: _array(leaf, found, type_) for x, leaf in leaves.items()})


def _below(base: str, leaf: Leaf) -> Leaf:
    return dataclasses.replace(leaf, names=tuple(base + name for name in leaf.names))


def _array(
    leaf: Leaf, found: Mapping[str, _Tensor], dtype: np.dtype | None
) -> np.ndarray:
    if leaf.stacked:
        return _stack(leaf, found, dtype)
    name = leaf.names[0]
    # In the order of its own axes: a transposed view would keep the file's.
    return np.ascontiguousarray(leaf.convert(found[name].read()), dtype)


def _stack(
    leaf: Leaf, found: Mapping[str, _Tensor], dtype: np.dtype | None
) -> np.ndarray:
    result = np.empty(0)
    for index, name in enumerate(leaf.names):
        part = leaf.convert(found[name].read())
        if not index:
            # Allocated once, so that the stack and its parts are not in memory
            # together.
            result = np.empty(leaf.shape, part.dtype if dtype is None else dtype)
        if dtype is None and part.dtype != result.dtype:
            raise ValueError(
                f"'{name}' is of {part.dtype}, and '{leaf.names[0]}', in the same "
                f"stack, of {result.dtype}. Give the dtype to load them in."
            )
        result[index] = part
        del part  # Before the next one is read.
    return result


def _find(folder: pathlib.Path) -> dict[str, _Tensor]:
    if (folder / WEIGHTS).is_file():
        return _header(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _shards(folder)
    if file := gguf_file.find(folder):
        return {k: _Tensor(*x) for k, x in gguf_weights.tensors(file).items()}
    if pickles := sorted(x.name for x in folder.glob("*.bin")):
        raise FileNotFoundError(
            f"'{folder / pickles[0]}' is a pickle, which could run any code and is "
            f"never opened, and there is no {WEIGHTS}. Convert it: load the model with "
            "transformers where you trust it, and save_pretrained(folder)."
        )
    raise FileNotFoundError(
        f"'{folder}' holds no weights: expected {WEIGHTS}, or shards and {INDEX}, or a "
        f"file {gguf_file.PATTERN}."
    )


def _shards(folder: pathlib.Path) -> dict[str, _Tensor]:
    index = folder / INDEX
    places = tensor_files.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        # A name with a folder in it could point outside of the model's.
        isinstance(x, str) and pathlib.PurePath(x).name == x
        for x in places.values()
    ):
        raise ValueError(
            f"'{index}' has no weight_map from tensors to files beside it. Download or "
            "save it again."
        )
    names = sorted(set(places.values()))
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"'{index}' names {absent}, not in '{folder}'. Download the missing shards."
        )
    # Every shard's header, before any tensor is read: errors come early.
    headers = {name: _header(folder / name) for name in names}
    lost = [f"{x} in {name}" for x, name in places.items() if x not in headers[name]]
    if lost:
        raise ValueError(
            f"'{index}' names tensors that their shards do not have: {lost}. Its files "
            "are of different versions: download or save all again."
        )
    return {x: tensor for name in names for x, tensor in headers[name].items()}


def _check(
    folder: pathlib.Path,
    found: Mapping[str, _Tensor],
    wanted: Sequence[tuple[str, Leaf]],
    ignored: Sequence[str],
) -> None:
    names = dict(wanted)
    missing = [name for name in names if name not in found]
    unexpected = [
        name
        for name in found
        if name not in names
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored)
    ]
    misshapen = [
        f"{name} is {found[name].shape}, {got}, expected {leaf.part}"
        for name, leaf in wanted
        if name in found and (got := _misfit(leaf, found[name].shape))
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"The tensors in '{folder}' are not those of the model. Missing: "
            f"{missing}. Unexpected: {unexpected}. Misshapen: {misshapen}. Does "
            "config.json belong to them?"
        )


def _misfit(leaf: Leaf, shape: tuple[int, ...]) -> str:
    """Describe a converted tensor of a wrong shape; empty if it is right."""
    # One number, broadcast to a whole tensor: trying a conversion takes no memory.
    tensor = np.broadcast_to(np.zeros((), np.float32), shape)
    try:
        got = leaf.convert(tensor).shape
    except ValueError:
        return "which cannot be converted"
    return "" if got == leaf.part else f"which becomes {got}"


def _header(file: pathlib.Path) -> dict[str, _Tensor]:
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            return {
                name: _Tensor(
                    tuple(opened.get_slice(name).get_shape()),
                    functools.partial(_read, file, name),
                )
                for name in opened.keys()  # noqa: SIM118  # No mapping.
            }
    except safetensors.SafetensorError as error:
        raise _damaged(file, error) from error


def _read(file: pathlib.Path, name: str) -> np.ndarray:
    # The file is mapped, and what was touched of a map stays in memory until it is
    # closed. So it is opened for every tensor.
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            return opened.get_tensor(name)
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise _damaged(file, error) from error


def _damaged(file: pathlib.Path, error: Exception) -> ValueError:
    return ValueError(
        f"'{file}' is not a whole safetensors file ({error}). Download or save it "
        "again."
    )
