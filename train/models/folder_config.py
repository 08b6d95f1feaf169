"""A model's configuration, from its `config.json` or else from its GGUF file.

Runs on the host.
"""

import pathlib
from typing import Any

from train.models import configuration, gguf_config, gguf_file


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Read the values of a model's configuration, under the names of transformers.

    Raises:
      FileNotFoundError: if it has neither `config.json` nor a GGUF file.
      ValueError: if the file is damaged, of an unknown architecture, or lacks a value.
    """
    file = gguf_file.find(folder)
    # A `config.json` wins: it is the model's own, and says more.
    if file is None or (folder / configuration.FILE).is_file():
        return configuration.read(folder)
    return gguf_config.read(file)


def model_type(folder: pathlib.Path) -> str:
    """Return the name of a model's architecture, as transformers has it.

    It is empty if the folder does not say.

    Raises:
      FileNotFoundError: as for `read`.
      ValueError: likewise.
    """
    return str(read(folder).get("model_type", ""))
