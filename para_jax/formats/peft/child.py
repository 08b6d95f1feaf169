"""The `adapter_config.json` of what is written: PEFT finds these modules and ranks.

What PEFT makes of the fields is in `peft_config`, what becomes of the parent's in
`peft_fields`. Host.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from para_jax._adapters.messages import Argument, Message
from para_jax._engines import experts as expert_modules
from para_jax._engines.profiles import Profile
from para_jax.formats.peft import (
    config as peft_config,
)
from para_jax.formats.peft import (
    fields as peft_fields,
)
from para_jax.formats.peft import (
    matching as peft_matching,
)
from para_jax.formats.peft.config import Config


class Content(NamedTuple):
    """What a file holds, by PEFT's names.

    Attributes:
      ranks: The rank of each module, in order.
      others: Modules of the same model that have no adapter.
      bare: Those of `ranks` that are parameters, not modules.
      tied: Those of `ranks` whose factors are the transposed ones of an embedding.
      extra: The other tensors.
      whole: Whether these are all modules that the parent's configuration was about.
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
    names, which all releases of PEFT, vLLM and SGLang read; or as the parent has them,
    where the child has all of the parent's.

    Args:
      source: The parent's configuration.
      content: What the file holds.
      profile: Which form of ranks and alphas.

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
    if profile == "padded":  # Absent modules are there, as zeros.
        content = content._replace(others=())
    return _agreed(result, content)


def _pattern(content: Content, most: int) -> dict[str, int]:
    """Return the ranks that are not the largest, by names that PEFT can tell apart."""
    ranks = content.ranks
    pattern = {name: r for name, r in ranks.items() if r != most}
    alike = any(x != y and peft_matching.matches(x, y) for x in pattern for y in ranks)
    if alike:
        # Bare names hold in all releases of PEFT. But where one name ends with another,
        # an anchor has to tell them apart, in any order; it holds since PEFT 0.15.
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
    """Return whether the parent's own list reaches what the file holds, and no more.

    It may reach modules of the base model that are not known here, unless the child
    has all modules that the parent had. Lists of short names can be compared with a
    server's; an expression cannot.
    """
    if not isinstance(source.get("target_modules"), list) or not content.whole:
        return False
    names = (x for x in content.ranks if x not in content.tied)
    return all(peft_config.targets(source, name) for name in names)


def _excluded(source: Config, content: Content) -> str | list[str] | None:
    """Return the regular expression of all other modules, where one is needed.

    PEFT takes a listed name as the end of a name too. That can reach modules that a
    regular expression or an exclusion of the parent kept out, or that have no adapter
    any more.
    """
    clash = any(peft_matching.ends_in(x, content.ranks) for x in content.others)
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
