"""PEFT's `adapter_config.json`: which module has which rank and scale, and back.

PEFT finds a module's rank and alpha by the first pattern that matches its name, and
the modules themselves by name, suffix or regular expression. The rules here are those
of PEFT 0.21; what is written also holds for the releases since 0.4 that read patterns.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

# The update of these is not `scale * B A`, so there is nothing that PARA could cut.
_VARIANTS = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
_KNOWN_FLAGS = {*_VARIANTS, "use_rslora"}
# Initialisations that take their first factors out of the base weights.
_RESIDUAL = {
    "pissa": "PiSSA",
    "milora": "MiLoRA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "lora_ga": "LoRA-GA",
    "loftq": "LoftQ",
}

Config = Mapping[str, Any]


def check(config: Config) -> None:
    """Raises ValueError unless the configuration is of a LoRA that can be cut.

    The message names the variant, or the field.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"peft_type is {kind!r}: only 'LORA' adapters have singular values to cut."
        )
    for field, name in _VARIANTS.items():
        if config.get(field) not in (None, False):
            raise ValueError(
                f"this is a {name} adapter ({field} is set): its update is not the "
                "product of two factors alone, so it cannot be compressed as LoRA."
            )
    unknown = [key for key in config if key.startswith("use_") and config[key]]
    if unknown := sorted(set(unknown) - _KNOWN_FLAGS):
        raise ValueError(
            f"{unknown[0]} is set: a LoRA variant that is not known here, so its "
            "update may not be the product of two factors alone."
        )
    if str(config.get("init_lora_weights")).lower() == "mica":
        raise ValueError(
            "this is a MiCA adapter (init_lora_weights is 'mica'): its update is not "
            "the product of two trained factors."
        )
    if config.get("target_parameters"):
        raise ValueError(
            "target_parameters is set: LoRA on bare parameters (fused experts) is not "
            "supported."
        )
    for field in ("r", "lora_alpha"):
        _positive(config.get(field), field)
    for field in ("rank_pattern", "alpha_pattern"):
        for key, value in (config.get(field) or {}).items():
            _positive(value, f"{field}['{key}']")


def _positive(value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        got = "missing" if value is None else repr(value)
        raise ValueError(f"{name} is {got}: expected a positive number.")


def residual(config: Config) -> str:
    """Returns the initialisation that changed the base weights, or nothing."""
    init = str(config.get("init_lora_weights")).lower()
    names = (name for key, name in _RESIDUAL.items() if init.startswith(key))
    return next(names, "")


def rank(config: Config, module: str) -> int:
    """Returns the rank that PEFT gives to a module."""
    return _lookup(config, "rank_pattern", "r", module)


def scale(config: Config, module: str) -> float:
    """Returns what PEFT multiplies `B A` of a module with."""
    alpha = _lookup(config, "alpha_pattern", "lora_alpha", module)
    r = rank(config, module)
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _lookup(config: Config, pattern: str, default: str, module: str) -> Any:
    table = config.get(pattern) or {}
    for key, value in table.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return config[default]


def targets(config: Config, module: str) -> bool:
    """Returns whether PEFT adapts a module, given lists of names."""

    def listed(names: Iterable[str]) -> bool:
        return any(module == name or module.endswith(f".{name}") for name in names)

    excluded = config.get("exclude_modules") or []
    if isinstance(excluded, str):
        return not re.fullmatch(excluded, module) and listed(config["target_modules"])
    return listed(config["target_modules"]) and not listed(excluded)


def ragged(source: Config, ranks: Mapping[str, int], others: Iterable[str]) -> dict:
    """Returns the configuration of a child whose modules differ in rank.

    Every scale is 1: `lora_alpha == r` and `alpha_pattern == rank_pattern`. Modules
    are listed by their full names, which all releases of PEFT, vLLM and SGLang read.

    Args:
      source: The parent's configuration, whose other fields stay.
      ranks: The rank of each module, by PEFT's name.
      others: Modules of the same model that have no adapter.

    Raises:
      ValueError: if PEFT's rules cannot tell the modules apart.
    """
    most = max(ranks.values())
    pattern = {name: r for name, r in ranks.items() if r != most}
    config = _child(source, ranks, most) | _patterns(pattern)
    if any(rank(config, name) != r for name, r in ranks.items()):
        # One name ends with another. An anchor holds since PEFT 0.15; a bare name
        # holds in all releases, so it is the first choice.
        config |= _patterns({f"^{re.escape(n)}": r for n, r in ranks.items()})
    clash = [name for name in others if targets(config, name)]
    if clash:
        config["exclude_modules"] = clash
    return _agreed(config, ranks, clash)


def padded(source: Config, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Returns the configuration of a child whose modules share one rank."""
    config = _child(source, ranks, max(ranks.values())) | _patterns({})
    return _agreed(config, ranks, [])


def _child(source: Config, ranks: Mapping[str, int], most: int) -> dict[str, Any]:
    blank = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None}
    return {
        **(source if source.get("peft_type") == "LORA" else blank),
        "r": most,
        "lora_alpha": most,
        "use_rslora": False,
        "target_modules": list(ranks),
    }


def _patterns(pattern: Mapping[str, int]) -> dict[str, dict[str, int]]:
    return {"rank_pattern": dict(pattern), "alpha_pattern": dict(pattern)}


def _agreed(
    config: dict[str, Any], ranks: Mapping[str, int], others: Iterable[str]
) -> dict[str, Any]:
    """Returns `config` if PEFT, reading it, would find these modules and ranks."""
    for name, r in ranks.items():
        if not targets(config, name) or rank(config, name) != r:
            raise ValueError(
                f"PEFT could not tell module '{name}' from another of a like name. "
                "Use the padded profile, or keep every module with min_rank=1."
            )
    if wrong := [name for name in others if targets(config, name)]:
        raise ValueError(
            f"PEFT would adapt module '{wrong[0]}', which kept nothing: its name ends "
            "with that of another. Use the padded profile, or min_rank=1."
        )
    return config
