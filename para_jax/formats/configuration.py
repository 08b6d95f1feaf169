"""The owner of a checkpoint's configuration: a format passes on only its own fields.

`Checkpoint.config` is PEFT's or mlx-lm's `adapter_config.json`, the metadata of a
single file, or the custom metadata of an Orbax checkpoint of another library. Through
an Orbax checkpoint of ours any of them passes unchanged, so the fields tell them apart,
not the file that was read.
"""

from collections.abc import Mapping
from typing import Any


def is_peft(config: Mapping[str, Any]) -> bool:
    """Decide whether a configuration is PEFT's."""
    return "peft_type" in config


def is_mlx(config: Mapping[str, Any]) -> bool:
    """Decide whether a configuration is mlx-lm's."""
    return "lora_parameters" in config
