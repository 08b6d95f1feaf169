"""The metadata of single safetensors files, from a parent to its child.

Facts about one file (its hash, rank and alpha) are recomputed for a child or left out;
facts about the training and the model stay. `rule` decides. Runs on the host.

Sources: sd-scripts `train_network.py`, `library/train_util.py` and
`library/sai_model_spec.py`; sd-webui-additional-networks; ai-toolkit
`toolkit/metadata.py`; OneTrainer `ot_*`; diffusers `loaders/lora_base.py`; PEFT.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

Rule = Literal["kept", "recomputed", "dropped"]

DIFFUSERS = "lora_adapter_metadata"  # Its `loaders/lora_base.py`.

RULES: dict[str, Rule] = {
    "format": "kept",
    # Hashes: of the tensors, and of 64 KiB at 1 MiB into a file with a header of its
    # own, which readers compute themselves where it is missing.
    "sshs_model_hash": "recomputed",
    "modelspec.hash_sha256": "recomputed",
    "sshs_legacy_hash": "dropped",
    # Ranks and alphas.
    "ss_network_dim": "recomputed",
    "ss_network_alpha": "recomputed",
    "ss_network_args": "recomputed",
    "ot_config": "recomputed",
    "alpha": "dropped",
    "lora_alpha": "dropped",
    "network_alpha": "dropped",
    "rank": "dropped",
    "r": "dropped",
    "lora_rank": "dropped",
    "lora_dim": "dropped",
    "network_dim": "dropped",
    "network_rank": "dropped",
    "use_rslora": "dropped",
    "scale": "dropped",
    "scaling": "dropped",
    "lora_scale": "dropped",
    "lora_scaling": "dropped",
    "network_args": "recomputed",
    # Configurations of the parent's ranks and alphas, as JSON.
    DIFFUSERS: "dropped",
    "adapter_config": "dropped",
    "lora_config": "dropped",
    "peft_config": "dropped",
    "para_jax": "recomputed",
    # ai-toolkit.
    "name": "kept",
    "version": "kept",
    "software": "kept",
    "training_info": "kept",
}
"""The fate of each known key; `rule` decides on all others."""

PREFIXES = (
    "ss_",  # sd-scripts and musubi-tuner: the training, the base model.
    "ssmd_",  # A user's notes, by sd-webui-additional-networks.
    "modelspec.",  # Title, author, architecture ...
    "ot_",  # OneTrainer.
)
"""Prefixes of keys that are kept, except for hashes, ranks and alphas."""

_RANKS = re.compile(
    r"(?:^|[._-])(?:alphas?|ranks?|dims?|r|rs_?lora|rank_pattern|alpha_pattern)$",
    re.IGNORECASE,
)
_ALPHAS = re.compile(r"(?:^|[._-])(?:alphas?|alpha_pattern)$", re.IGNORECASE)
_HASHES = re.compile(
    r"(?:^|[._-])(?:hash|sha256|md5|crc32|blake3|autov\d)$", re.IGNORECASE
)


def rule(key: str, value: str = "") -> Rule:
    """Return the fate of a key of a parent's header in its child.

    Unknown keys stay, unless their last word names a rank, an alpha or a hash (except
    `ss_..._hash`, of the base model), or their value is a LoRA configuration.

    Example:
      >>> from para_jax.formats.kohya import headers
      >>> headers.rule("ss_steps"), headers.rule("unet.lora_alpha")
      ('kept', 'dropped')
    """
    if key in RULES:
        return RULES[key]
    if _RANKS.search(key):
        return "dropped"
    if _HASHES.search(key) and not key.startswith("ss_"):  # `ss_`: the base model's.
        return "dropped"
    if key.startswith(PREFIXES):
        return "kept"
    # A configuration under any name would state the parent's ranks.
    config = value.lstrip().startswith("{") and "lora_alpha" in value
    return "dropped" if config else "kept"


def parsed(value: str) -> Mapping[str, Any]:
    """Parse the JSON object in a value; return an empty one if there is none."""
    if not value.lstrip().startswith("{"):
        return {}
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_alpha(key: str) -> bool:
    """Decide by its last word whether a key is an alpha's."""
    return _ALPHAS.search(key) is not None


def components(keys: Iterable[str]) -> list[str]:
    """Return the components configured by flat keys: `unet` for `unet.lora_alpha`."""
    keys = set(keys)
    names = sorted(key.removesuffix(".r") for key in keys if key.endswith(".r"))
    return [name for name in names if f"{name}.lora_alpha" in keys]


def child(
    parent: Mapping[str, str],
    ranks: Collection[int],
    alpha: float | None,
    digest: Callable[[], str],
) -> dict[str, str]:
    """Return the metadata of a child's file.

    Readers of the tensors' alphas and readers of the header's find the same scale.

    Args:
      parent: The parent's metadata.
      ranks: The ranks in the new file.
      alpha: The alpha of each of its modules; None without alphas, when all scales
        are 1.
      digest: Computes the SHA-256 of its tensors; called only if needed.
    """
    configs = tuple(f"{x}." for x in components(parent))
    result = {"format": "pt"}
    result |= {
        key: x
        for key, x in parent.items()
        if rule(key, x) == "kept" and not key.startswith(configs)
    }
    for key in ("ss_network_args", "network_args", "ot_config"):
        if key in parent:
            result[key] = _without_ranks(parent[key])
    hashes = {"sshs_model_hash": "", "modelspec.hash_sha256": "0x"}
    if wanted := hashes.keys() & parent.keys():
        found = digest()
        # As sd-scripts writes them: the latter with 0x before it.
        result |= {key: hashes[key] + found for key in wanted}
    if alpha is not None or any(key.startswith("ss_") for key in parent):
        result |= _network(ranks, alpha)
    return result


def _network(ranks: Collection[int], alpha: float | None) -> dict[str, str]:
    one = next(iter(ranks)) if len(set(ranks)) == 1 else None
    dim = "Dynamic" if one is None else str(one)  # As sd-scripts' resize_lora.py says.
    if alpha is None and one is None:
        return {"ss_network_dim": dim}
    # Without alphas the scale is 1, which is the rank as an alpha.
    of_all = float(one or 0) if alpha is None else alpha
    return {"ss_network_dim": dim, "ss_network_alpha": f"{of_all:g}"}


def _without_ranks(value: str) -> str:
    """Remove the ranks and alphas from a JSON object."""
    found = parsed(value)
    if not any(map(_RANKS.search, found)):
        return value
    return json.dumps({k: x for k, x in found.items() if not _RANKS.search(k)})
