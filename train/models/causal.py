"""Causal language models, by the `model_type` of their folders. Runs on the host."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import tokenizers

from para_jax.formats import tensor_files
from train.models import (
    configuration,
    folder_config,
    gemma3,
    gguf_file,
    gguf_tokenizer,
    llama,
)

_OF_GGUF = "tokenizer.ggml.eos_token_id"
_SETTINGS, _GENERATION = "tokenizer_config.json", "generation_config.json"


class Family(NamedTuple):
    """Models of one architecture.

    Attributes:
      model: Makes a model of a configuration, with `dtype` and `remat`. It has
        `adapted`, `hidden`, `logits`, `score` and `empty_cache`, as `gemma3.Gemma3`.
      read_config: Reads the configuration in a folder.
      load: Loads the params in a folder, by a configuration and `dtype`.
    """

    model: Callable[..., Any]
    read_config: Callable[[pathlib.Path], Any]
    load: Callable[..., dict[str, Any]]


_GEMMA3 = Family(gemma3.Gemma3, gemma3.read_config, gemma3.load)

FAMILIES: Mapping[str, Family] = {
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "llama": Family(llama.Llama, llama.read_config, llama.load),
}
"""The families; Gemma 3 has two names, with a vision tower and without."""

load_tokenizer = gguf_tokenizer.load
"""Loads the tokenizer of a model's folder."""


@functools.lru_cache(maxsize=1)  # The runs of a comparison share it, on the device too.
def base(folder: pathlib.Path, dtype: str) -> Mapping[str, Any]:
    """Load the params of a model, onto the device.

    Args:
      folder: The model's folder, of one of `FAMILIES`.
      dtype: The dtype of the params.

    Raises:
      OSError: if a file is not there.
      ValueError: if the files do not fit together.
    """
    family = FAMILIES[folder_config.model_type(folder)]
    params = family.load(folder, family.read_config(folder), dtype=jnp.dtype(dtype))
    return cast("dict[str, Any]", jax.tree.map(jnp.asarray, params))


def end_token(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> int:
    """Return the token that the model writes after a text.

    It is the first one that the tokenizer's settings, those of generation, the model's
    configuration, or its GGUF file names.

    Raises:
      FileNotFoundError: if there is neither a configuration nor a GGUF file.
      ValueError: if none of them names one that the tokenizer has.
    """
    named = _settings(folder / _SETTINGS).get("eos_token")
    # As a text, or as an object with all properties of the token.
    text = named.get("content") if isinstance(named, Mapping) else named
    if text is not None and (found := tokenizer.token_to_id(text)) is not None:
        return found
    model = folder_config.read(folder)
    # A model with a vision tower may nest the values of its text part.
    named = _settings(folder / _GENERATION), model, model.get("text_config")
    for values in (*named, _metadata(folder)):
        found = (values or {}).get("eos_token_id")
        first = found[0] if isinstance(found, list) and found else found
        if isinstance(first, int) and tokenizer.id_to_token(first) is not None:
            return first
    raise ValueError(
        f"'{folder}' names no token for the end of a text: expected `eos_token` in "
        f"{_SETTINGS}, or `eos_token_id` in {_GENERATION} or {configuration.FILE}, and "
        f"the token in {gguf_tokenizer.FILE}. Add it, as the model's page on the hub "
        "says."
    )


def _metadata(folder: pathlib.Path) -> Mapping[str, Any]:
    """Return what a GGUF file says of the end of a text."""
    if (file := gguf_file.find(folder)) is None:
        return {}
    return {"eos_token_id": gguf_file.read_header(file).metadata.get(_OF_GGUF)}


def _settings(file: pathlib.Path) -> Mapping[str, Any]:
    """Return the values of a file that a model may lack."""
    return tensor_files.read_json(file) if file.is_file() else {}
