"""PEFT's `adapter_config.json`: the rank and scale of each module, and its targets.

PEFT finds a module's rank and alpha by the first pattern that matches its name, and the
modules themselves by name, suffix or regular expression. The rules are PEFT 0.21's. The
files that we write are also read rightly by all releases since 0.4 with patterns. Runs
on the host.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from para_jax.formats.peft import fields as peft_fields, patterns

# Their update is not `scale * B A`, so the singular values of `B A` tell nothing.
_VARIANTS = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "enable_lora": "merged",
}
# Initialisations that subtract the first factors from the base weights: the adapter
# belongs to the changed weights.
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
    """Raise ValueError unless the configuration is of plain LoRA.

    The message names the variant, or the field.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        got = "missing" if kind is None else repr(kind)
        raise ValueError(
            f"peft_type is {got}: only 'LORA' adapters have singular values to cut."
        )
    _check_variant(config)
    _check_numbers(config)


def _check_variant(config: Config) -> None:
    for field, name in _VARIANTS.items():
        if config.get(field) not in (None, False):
            raise ValueError(
                f"this is a {name} adapter ({field} is set): its update is not the "
                "product of two factors alone, so it cannot be compressed as LoRA."
            )
    if unknown := peft_fields.unknown(config):
        raise ValueError(
            f"{unknown} is set: a LoRA variant that is not known here, so its "
            "update may not be the product of two factors alone."
        )


def _check_numbers(config: Config) -> None:
    wanted = config.get("target_parameters") or []
    if not (isinstance(wanted, list) and all(isinstance(x, str) for x in wanted)):
        raise ValueError(f"target_parameters is {wanted!r}: expected a list of names.")
    for field, pattern, whole in (
        ("r", "rank_pattern", True),
        ("lora_alpha", "alpha_pattern", False),
    ):
        _positive(config.get(field), field, whole=whole)
        table = config.get(pattern) or {}
        if not isinstance(table, dict):
            raise ValueError(f"{pattern} is {table!r}: expected names and numbers.")
        for key, value in table.items():
            _positive(value, f"{pattern}['{key}']", whole=whole)
            _compiles(key, pattern)


def _positive(value: object, name: str, *, whole: bool) -> None:
    # In Python, JSON's `true` is an int too.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = number and value > 0 and math.isfinite(value)
    if good and (not whole or value == int(value)):
        return
    got = "missing" if value is None else repr(value)
    kind = " without a fraction" if whole else ""
    raise ValueError(f"{name} is {got}: expected a positive number{kind}.")


def _compiles(pattern: str, name: str) -> None:
    if patterns.is_plain(pattern):
        return
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{name} has the key {pattern!r}, which is not a regular expression "
            f"({error})."
        ) from error


def residual(config: Config) -> str:
    """Return the name of an initialisation that changed the base weights, or ""."""
    init = str(config.get("init_lora_weights")).lower()
    names = (name for key, name in _RESIDUAL.items() if init.startswith(key))
    return next(names, "")


def rank(config: Config, module: str) -> int:
    """Return PEFT's rank of a module."""
    return int(_lookup(config, "rank_pattern", "r", module))


def scale(config: Config, module: str) -> float:
    """Return PEFT's scale of a module: the factor of `B A`."""
    alpha = _lookup(config, "alpha_pattern", "lora_alpha", module)
    r = rank(config, module)
    # rsLoRA divides by the root, so that the update keeps its size for large ranks.
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _lookup(config: Config, pattern: str, default: str, module: str) -> Any:
    table = config.get(pattern) or {}
    key = patterns.patterns(tuple(table)).first(module)
    return config[default] if key is None else table[key]


def parameters(config: Config, module: str) -> list[str]:
    """Return the names of a module's own parameters that may be adapted.

    A name in `target_parameters` without a module matches in any module, unless that
    is adapted as a whole.
    """
    wanted = [x.rpartition(".") for x in config.get("target_parameters") or []]
    whole = _targets_module(config, module)
    found = [
        name
        for owner, _, name in wanted
        if (ends_in(module, [owner]) if owner else not whole)
    ]
    return list(dict.fromkeys(found))


def _targets_module(config: Config, module: str) -> bool:
    names = config.get("target_modules") or []
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return ends_in(module, names)


def targets(config: Config, module: str) -> bool:
    """Decide whether PEFT adapts a module, or a parameter, of a child.

    The names in `target_parameters` are full names, or ends of them.
    """
    if ends_in(module, config.get("target_parameters") or []):
        return True
    excluded = config.get("exclude_modules") or []
    if isinstance(excluded, str):
        out = bool(re.fullmatch(excluded, module))
    else:
        out = ends_in(module, excluded)
    return not out and _targets_module(config, module)


def ends_in(module: str, names: Iterable[str]) -> bool:
    """Decide whether any of the names is the module's, or its end."""
    parts = module.split(".")
    return not {".".join(parts[i:]) for i in range(len(parts))}.isdisjoint(names)
