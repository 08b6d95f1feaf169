"""The files of a pretrained model, in a folder of models or from the hub.

A folder WEIGHTS holds each repository under its name on the Hugging Face hub, as

    hf download FacebookAI/roberta-base --local-dir WEIGHTS/FacebookAI/roberta-base

leaves it. What is trained on weights without a hash of their own is recorded with that
of the files that were found.
"""

import functools
import hashlib
import importlib.util
import os
import pathlib

from train.models import gguf_file

FOLDER_VARIABLE = "PARA_WEIGHTS"
"""The environment variable for the folder of models."""

_TENSORS = ("*.safetensors", gguf_file.PATTERN)
# Without GGUF: a repository has the same model in many precisions, and one is meant.
_DOWNLOADED = ("*.json", "*.safetensors", "*.txt")


def root(weights: pathlib.Path | None = None) -> pathlib.Path | None:
    """Return the folder of models: `weights`, or `PARA_WEIGHTS`, or none."""
    if weights is None and FOLDER_VARIABLE in os.environ:
        weights = pathlib.Path(os.environ[FOLDER_VARIABLE])
    return weights


def find(repo: str, *, weights: pathlib.Path | None = None) -> pathlib.Path:
    """Find the folder with a model's files, downloading them if necessary.

    Args:
      repo: The model's repository on the hub.
      weights: A folder of models, see above. By default that of the environment
        variable `PARA_WEIGHTS`, or else the hub.

    Raises:
      OSError: if the model is not there, or the hub cannot be reached.
    """
    place = root(weights)
    if place is None:
        return _downloaded(repo)
    folder = place / repo
    if not folder.is_dir():
        raise FileNotFoundError(
            f"The model {repo} was not found: there is no folder '{folder}'. Run\n"
            f"    {command(repo, folder)}\n"
            "or give no folder of models, to load it from the hub."
        )
    return folder


def command(repo: str, folder: pathlib.Path) -> str:
    """Return the command to download a model to `folder`."""
    return f"hf download {repo} --local-dir {folder}"


@functools.cache  # A model of billions of parameters takes a while.
def sha256(folder: pathlib.Path) -> str:
    """Return the hash of a model's tensors.

    It is the hash of the one file of tensors; of several, the hash of their lines
    of names and hashes, as `sha256sum *.safetensors` prints them. A GGUF file counts
    where there are no safetensors, as for `checkpoint.load`.

    Raises:
      FileNotFoundError: if there are no tensors.
    """
    # Sorted: the hash must not depend on the order of the file system.
    kinds = (sorted(folder.glob(pattern)) for pattern in _TENSORS)
    files = next((found for found in kinds if found), [])
    if not files:
        raise FileNotFoundError(
            f"'{folder}' holds no model: neither {' nor '.join(_TENSORS)} is in it."
        )
    digests = [_digest(file) for file in files]
    if len(files) == 1:
        return digests[0]
    pairs = zip(digests, files, strict=True)
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in pairs)
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _downloaded(repo: str) -> pathlib.Path:
    remedy = (
        f"Where there is a network, run\n"
        f"    {command(repo, pathlib.Path('WEIGHTS', repo))}\n"
        f"bring the folder WEIGHTS here, and set {FOLDER_VARIABLE} to it."
    )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise FileNotFoundError(
            f"The model {repo} is not here, and the package huggingface_hub, which "
            f"downloads it, is not installed. {remedy}"
        )
    import huggingface_hub

    try:
        # Without pickles and duplicates in other frameworks' formats.
        found = huggingface_hub.snapshot_download(repo, allow_patterns=[*_DOWNLOADED])
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"The model {repo} is not here, and could not be downloaded ({error}). "
            f"{remedy}"
        ) from error
    return pathlib.Path(found)
