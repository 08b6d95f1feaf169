"""PEFT's `adapter_config.json`: which module has which rank and scale, and back.

PEFT finds a module's rank and alpha by the first pattern that matches its name, and
the modules themselves by name, suffix or regular expression. The rules here are those
of PEFT 0.21; what is written also holds for the releases since 0.4 that read patterns.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from para_jax.formats import peft_matching

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
# What these initialisations read when an adapter is made.
_STARTS = {"corda_config", "lora_ga_config", "loftq_config"}

Config = Mapping[str, Any]


def check(config: Config) -> None:
    """Raises ValueError unless the configuration is of a LoRA that can be cut.

    The message names the variant, or the field.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        got = "missing" if kind is None else repr(kind)
        raise ValueError(
            f"peft_type is {got}: only 'LORA' adapters have singular values to cut."
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
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = number and value > 0 and math.isfinite(value)
    if good and (not whole or value == int(value)):
        return
    got = "missing" if value is None else repr(value)
    kind = " without a fraction" if whole else ""
    raise ValueError(f"{name} is {got}: expected a positive number{kind}.")


def _compiles(pattern: str, name: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{name} has the key {pattern!r}, which is no regular expression ({error})."
        ) from error


def residual(config: Config) -> str:
    """Returns the initialisation that changed the base weights, or nothing."""
    init = str(config.get("init_lora_weights")).lower()
    names = (name for key, name in _RESIDUAL.items() if init.startswith(key))
    return next(names, "")


def rank(config: Config, module: str) -> int:
    """Returns the rank that PEFT gives to a module."""
    return int(_lookup(config, "rank_pattern", "r", module))


def scale(config: Config, module: str) -> float:
    """Returns what PEFT multiplies `B A` of a module with."""
    alpha = _lookup(config, "alpha_pattern", "lora_alpha", module)
    r = rank(config, module)
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _lookup(config: Config, pattern: str, default: str, module: str) -> Any:
    table = config.get(pattern) or {}
    key = peft_matching.first_match(tuple(table), module)
    return config[default] if key is None else table[key]


def parameters(config: Config, module: str) -> list[str]:
    """Returns the names of a module's own parameters that PEFT may have adapted.

    A name of `target_parameters` without a module is that of any module, but one that
    is adapted as a whole.
    """
    wanted = [x.rpartition(".") for x in config.get("target_parameters") or []]
    whole = _targets_module(config, module)
    found = [
        name
        for owner, _, name in wanted
        if (peft_matching.ends_in(module, [owner]) if owner else not whole)
    ]
    return list(dict.fromkeys(found))


def _targets_module(config: Config, module: str) -> bool:
    names = config.get("target_modules") or []
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return peft_matching.ends_in(module, names)


def targets(config: Config, module: str) -> bool:
    """Returns whether PEFT adapts a module, by what a child's fields hold.

    Or a parameter: `target_parameters` are full names, or the ends of them.
    """
    if peft_matching.ends_in(module, config.get("target_parameters") or []):
        return True
    excluded = config.get("exclude_modules") or []
    if isinstance(excluded, str):
        out = bool(re.fullmatch(excluded, module))
    else:
        out = peft_matching.ends_in(module, excluded)
    return not out and _targets_module(config, module)


def ragged(
    source: Config,
    ranks: Mapping[str, int],
    others: Iterable[str],
    *,
    bare: Collection[str] = (),
) -> dict[str, Any]:
    """Returns the configuration of a child whose modules differ in rank.

    Every scale is 1: `lora_alpha == r` and `alpha_pattern == rank_pattern`. Modules
    are listed by their full names, which all releases of PEFT, vLLM and SGLang read.

    Args:
      source: The parent's configuration, whose other fields stay.
      ranks: The rank of each module, by PEFT's name.
      others: Modules of the same model that have no adapter.
      bare: Those of `ranks` that are parameters, not modules.

    Raises:
      ValueError: if PEFT's rules cannot tell the modules apart.
    """
    most = max(ranks.values())
    pattern = {name: r for name, r in ranks.items() if r != most}
    alike = any(x != y and peft_matching.matches(x, y) for x in pattern for y in ranks)
    if alike:
        # Bare names hold in all releases of PEFT. But where one name ends with another,
        # an anchor has to tell them apart, in any order; it holds since PEFT 0.15.
        pattern = {f"^{re.escape(name)}": r for name, r in ranks.items()}
    config = _child(source, ranks, others, bare) | {"rank_pattern": pattern}
    return _agreed(config | {"alpha_pattern": dict(pattern)}, ranks, others)


def padded(
    source: Config, ranks: Mapping[str, int], *, bare: Collection[str] = ()
) -> dict[str, Any]:
    """Returns the configuration of a child whose modules share one rank."""
    config = _child(source, ranks, (), bare) | {"rank_pattern": {}, "alpha_pattern": {}}
    return _agreed(config, ranks, ())


def over_ranks(config: Config) -> dict[str, Any]:
    """Returns the configuration where `1 / r` of each module is its scale."""
    return {**config, "lora_alpha": 1, "alpha_pattern": {}}


def _child(
    source: Config,
    ranks: Mapping[str, int],
    others: Iterable[str],
    bare: Collection[str],
) -> dict[str, Any]:
    blank = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None}
    source = source if source.get("peft_type") == "LORA" else blank
    most = max(ranks.values())
    # A child is what its file says. These would change the base weights once more on
    # loading, or refuse an odd rank.
    starts: dict[str, Any] = {}
    if residual(source) or source.get("init_lora_weights") == "orthogonal":
        starts = {key: None for key in _STARTS if source.get(key)}
        starts["init_lora_weights"] = True
    excluded = _excluded(source, ranks, others)
    if excluded or "exclude_modules" in source:
        starts["exclude_modules"] = excluded
    if bare or source.get("target_parameters"):  # Unknown to PEFT before 0.17.
        starts["target_parameters"] = [name for name in ranks if name in bare]
    return {
        **source,
        **starts,
        "r": most,
        "lora_alpha": most,
        "use_rslora": False,
        "target_modules": [name for name in ranks if name not in bare],
    }


def _excluded(
    source: Config, ranks: Mapping[str, int], others: Iterable[str]
) -> str | list[str] | None:
    """Returns the regular expression of all other modules, where one is needed.

    PEFT takes a listed name as the end of a name too. That can reach modules that a
    regular expression or an exclusion of the parent kept out, or that have no adapter
    any more.
    """
    clash = any(peft_matching.ends_in(x, ranks) for x in others)
    exact = isinstance(source.get("target_modules"), str)
    if not (clash or exact):
        return source.get("exclude_modules")
    return rf"(?!(?:{'|'.join(map(re.escape, ranks))})$).*"


def _agreed(
    config: dict[str, Any], ranks: Mapping[str, int], others: Iterable[str]
) -> dict[str, Any]:
    """Returns `config` if PEFT, reading it, would find these modules and ranks."""
    wrong = [
        x for x, r in ranks.items() if not targets(config, x) or rank(config, x) != r
    ]
    wrong += [name for name in others if targets(config, name)]
    if wrong:
        raise ValueError(
            f"PEFT could not tell module '{wrong[0]}' from another of a like name. "
            "Use the padded profile, or keep every module with min_rank=1."
        )
    return config
