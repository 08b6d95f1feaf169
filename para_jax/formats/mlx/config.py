"""mlx-lm's `adapter_config.json`: its rank and scale, and a child's fields.

mlx-lm makes LoRA layers of the modules in `keys`, relative to their layer, in the last
`num_layers` layers (all, for -1), and of the full names in `keys` elsewhere; all have
one rank and one raw `scale` (mlx_lm 0.32.2, `tuner/utils.py`). Its releases before
June 2024 multiplied `scale * alpha / rank`, and those before October 2024 called the
number of layers `lora_layers`. Runs on the host.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from para_jax.formats import configuration

Config = Mapping[str, Any]

_MISSING = object()
# Fields of the parent's training and files, which are not true of a child.
_DROPPED = ("lora_layers", "use_dora", "adapter_path", "resume_adapter_file")
_IN_LAYER = re.compile(r"(?:^|\.)\d+\.(?P<key>.+)$")


def rank_and_scale(config: Config) -> tuple[int, float]:
    """Return the rank and the scale of every module.

    Raises:
      ValueError: if this is not plain LoRA, or the scale is unknown. The message names
        the field.
    """
    _check_kind(config)
    given = config.get("lora_parameters")
    if not isinstance(given, dict):
        found = "has rank and alpha at the top, as mlx-vlm's before 2026 have"
        found = found if "rank" in config else "has no lora_parameters"
        raise ValueError(
            f"adapter_config.json {found}: expected lora_parameters with rank, scale "
            "and dropout, as mlx-lm writes them."
        )
    rank, scale = given.get("rank", _MISSING), given.get("scale", _MISSING)
    if scale is _MISSING:
        hint = " It reads no alpha." if "alpha" in given else ""
        raise ValueError(
            f"lora_parameters has no scale, so mlx-lm cannot load it either.{hint} "
            "Add the scale that it was trained with."
        )
    _check_number(rank, "rank", whole=True)
    _check_number(scale, "scale", whole=False)
    # `num_layers` marks a later release, where an alpha is not read.
    if "num_layers" not in config and given.get("alpha", rank) != rank:
        raise ValueError(
            f"lora_parameters has scale {scale} and alpha {given['alpha']}: mlx-lm "
            "before June 2024 multiplied scale * alpha / rank, later releases read "
            "scale alone. Set scale to the value it was trained with, and remove alpha."
        )
    return int(rank), float(scale)


def _check_kind(config: Config) -> None:
    kind = config.get("fine_tune_type", "lora")
    if kind == "dora" or config.get("use_dora"):
        raise ValueError(
            "this is a DoRA adapter (fine_tune_type or use_dora): its update is not "
            "the product of two factors alone, so it cannot be compressed as LoRA."
        )
    if kind == "full":
        raise ValueError(
            "fine_tune_type is 'full': it holds tuned weights, not LoRA factors. "
            "para_jax.extract makes an adapter of a tuned model and its base."
        )
    if kind != "lora":
        raise ValueError(f"fine_tune_type is {kind!r}: only 'lora' is known here.")


def _check_number(value: Any, name: str, *, whole: bool) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = number and math.isfinite(value)
    if not good or (whole and (value < 1 or value != int(value))):
        got = "missing" if value is _MISSING else repr(value)
        kind = "whole number from 1 up" if whole else "finite number"
        raise ValueError(f"lora_parameters: {name} is {got}, expected a {kind}.")


def child(source: Config, names: Iterable[str], rank: int) -> dict[str, Any]:
    """Return the configuration of a child of scale 1.

    Args:
      source: The parent's configuration. If it is mlx-lm's, `num_layers`, `dropout`
        and all fields independent of the parent's files stay.
      names: The dotted names of the child's modules.
      rank: The rank of all of them.
    """
    source = source if configuration.is_mlx(source) else {}
    kept = {name: x for name, x in source.items() if name not in _DROPPED}
    layers = source.get("num_layers", source.get("lora_layers", -1))
    # mlx-lm looks for keys inside each layer, so the layer's number is cut off.
    inside = ((_IN_LAYER.search(name), name) for name in names)
    keys = [match["key"] if match else name for match, name in inside]
    dropout = source.get("lora_parameters", {}).get("dropout", 0.0)
    return {
        **kept,
        "fine_tune_type": "lora",
        "num_layers": layers,
        "lora_parameters": {
            "rank": rank,
            "scale": 1.0,
            "dropout": dropout,
            "keys": list(dict.fromkeys(keys)),
        },
    }
