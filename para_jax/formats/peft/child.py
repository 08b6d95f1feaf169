"""The `adapter_config.json` of a child: the modules and ranks in its file.

PEFT's rules for reading the fields are in `config.py`, and the fate of the parent's
fields in `fields.py`. Runs on the host.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from para_jax._adapters.messages import Argument, Message
from para_jax._engines import experts as expert_modules
from para_jax._engines.profiles import Profile
from para_jax.formats.peft import (
    config as peft_config,
    fields as peft_fields,
    patterns,
)
from para_jax.formats.peft.config import Config


class Content(NamedTuple):
    """The contents of a file, by PEFT's names.

    Attributes:
      ranks: The rank of each module, in order.
      others: Modules of the same model without an adapter.
      bare: The parameters among `ranks`; the others are modules.
      tied: The modules among `ranks` with the transposed factors of an embedding.
      extra: The other tensors.
      whole: Whether these are all modules of the parent's configuration.
    """

    ranks: Mapping[str, int]
    others: Collection[str] = ()
    bare: Collection[str] = ()
    tied: Collection[str] = ()
    extra: Collection[str] = ()
    whole: bool = False


def config(source: Config, content: Content, profile: Profile) -> dict[str, Any]:
    """Return the configuration of a child.

    Every scale is 1: `lora_alpha == r` and `alpha_pattern == rank_pattern`; for
    `per-tensor-alpha`, 1 over the module's rank. Modules are listed by their full
    names, which all releases of PEFT, vLLM and SGLang read, or by the parent's list if
    the child has all of the parent's modules.

    Args:
      source: The parent's configuration.
      content: The contents of the file.
      profile: The form of ranks and alphas.

    Raises:
      ValueError: if PEFT's rules cannot tell the modules apart.
    """
    most = max(content.ranks.values())
    pattern = {} if profile == "padded" else _pattern(content, most)
    alphas = {} if profile == "per-tensor-alpha" else pattern
    result = _fields(source, content) | {
        "r": most,
        "lora_alpha": 1 if profile == "per-tensor-alpha" else most,
        "use_rslora": False,
        "rank_pattern": pattern,
        "alpha_pattern": dict(alphas),
    }
    if profile == "padded":  # Absent modules are in the file, as zeros.
        content = content._replace(others=())
    return _agreed(result, content)


def _pattern(content: Content, most: int) -> dict[str, int]:
    """Return the ranks below the largest, by names without ambiguity for PEFT."""
    ranks = content.ranks
    pattern = {name: r for name, r in ranks.items() if r != most}
    keys = patterns.patterns(tuple(pattern))
    alike = any(keys.all(name) - {name} for name in ranks)
    if alike:
        # All releases of PEFT read bare names. But if one name ends with another, the
        # result depends on their order without an anchor, read since PEFT 0.15.
        pattern = {f"^{re.escape(name)}": r for name, r in ranks.items()}
    return pattern | expert_modules.stacked_ranks(ranks, most)


def _fields(source: Config, content: Content) -> dict[str, Any]:
    blank = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None}
    source = source if source.get("peft_type") == "LORA" else blank
    result = peft_fields.passed_on(source, content.extra)
    if not _parents_list_holds(source, content):
        names = [name for name in content.ranks if name not in content.bare]
        result |= {"target_modules": names}
        excluded = _excluded(source, content)
        if excluded or "exclude_modules" in source:
            result["exclude_modules"] = excluded
        if content.bare or source.get("target_parameters"):  # Unknown before 0.17.
            bare = [name for name in content.ranks if name in content.bare]
            result["target_parameters"] = bare
        for key in ("layers_to_transform", "layers_pattern"):
            if key in source:
                result[key] = None
    return result | peft_fields.ties(result, factors=bool(content.tied))


def _parents_list_holds(source: Config, content: Content) -> bool:
    """Decide whether the parent's own list targets exactly the file's modules.

    If the child lacks modules of the parent, the list may match others of the base
    model, which are not known here. Lists of short names are worth keeping, because
    servers compare them with their own.
    """
    if not isinstance(source.get("target_modules"), list) or not content.whole:
        return False
    names = (x for x in content.ranks if x not in content.tied)
    return all(peft_config.targets(source, name) for name in names)


def _excluded(source: Config, content: Content) -> str | list[str] | None:
    """Return a regular expression of all other modules, if one is needed.

    PEFT matches a listed name with the end of a name too. It may thus find modules that
    the parent's expression or exclusion kept out, or that have lost their adapter.
    """
    clash = any(peft_config.ends_in(x, content.ranks) for x in content.others)
    exact = isinstance(source.get("target_modules"), str)
    if not (clash or exact):
        return source.get("exclude_modules")
    return rf"(?!(?:{'|'.join(map(re.escape, content.ranks))})$).*"


def _agreed(config: dict[str, Any], content: Content) -> dict[str, Any]:
    """Return `config` if PEFT, reading it, would find these modules and ranks."""
    wrong = [
        x
        for x, r in content.ranks.items()
        if peft_config.rank(config, x) != r
        or not (x in content.tied or peft_config.targets(config, x))
    ]
    wrong += [name for name in content.others if peft_config.targets(config, name)]
    if wrong:
        raise ValueError(
            Message(
                f"PEFT could not tell module '{wrong[0]}' from another of a like name. "
                "Use the padded profile, or keep every module with ",
                Argument("min_rank", 1),
                ".",
            )
        )
    return config
