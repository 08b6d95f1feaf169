"""The fields of PEFT's `adapter_config.json`, and the fate of each in a child.

The fields are those of `LoraConfig` in PEFT 0.21, and of older releases. A field about
the parent's tensors, its initialisation or its training is not true of a child. Runs on
the host.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from para_jax.formats.peft import tensors as peft_tensors

Config = Mapping[str, Any]
Fate = Literal["kept", "recomputed", "dropped", "refused"]
"""`refused`: kept if it is empty; otherwise the adapter cannot be cut."""


class Field(NamedTuple):
    """The fate of a field, with the reason."""

    fate: Fate
    reason: str


_MODEL = Field("kept", "of the base model, which is the child's too")
_TRAINING = Field("kept", "of training, and true of the child if that goes on")
_MATCHING = Field("recomputed", "which modules the file holds")
_SCALING = Field("recomputed", "the child's ranks, at a scale of 1")
_TENSORS = Field("recomputed", "kept as far as the file holds its tensors")
_START = Field("dropped", "how the parent was begun: PEFT would begin the child so")
_VARIANT = Field("refused", "the update is not the product of two factors alone")

FIELDS: dict[str, Field] = {
    "peft_type": Field("kept", "always LORA"),
    "task_type": Field(
        "recomputed", "PEFT saves a head with some: see modules_to_save"
    ),
    "auto_mapping": _MODEL,
    "base_model_name_or_path": _MODEL,
    "revision": _MODEL,
    "peft_version": Field("kept", "whose fields these are"),
    "inference_mode": _TRAINING,
    "lora_dropout": _TRAINING,
    "r": _SCALING,
    "lora_alpha": _SCALING,
    "use_rslora": _SCALING,
    "rank_pattern": _SCALING,
    "alpha_pattern": _SCALING,
    "target_modules": _MATCHING,
    "exclude_modules": _MATCHING,
    "target_parameters": _MATCHING,
    "layers_to_transform": _MATCHING,
    "layers_pattern": _MATCHING,
    "ensure_weight_tying": Field("recomputed", "whether the file ties what PEFT would"),
    "fan_in_fan_out": _MODEL,
    "megatron_config": _MODEL,
    "megatron_core": _MODEL,
    "layer_replication": Field("kept", "the names are those of the replicated layers"),
    "bias": _TENSORS,
    "modules_to_save": _TENSORS,
    "trainable_token_indices": _TENSORS,
    "lora_bias": _TENSORS,
    "init_lora_weights": Field("recomputed", "a child is what its file says"),
    "loftq_config": _START,
    "eva_config": _START,
    "corda_config": _START,
    "lora_ga_config": _START,
    "velora_config": Field("dropped", "how gradients were made; the update is B A"),
    "monteclora_config": Field("dropped", "noise of training; the update is B A"),
    "runtime_config": Field("dropped", "PEFT ignores it in a file"),
    "merge_weights": Field("dropped", "PEFT up to 0.2; no later release knows it"),
    "qalora_group_size": Field("kept", "without use_qalora it means nothing"),
    "use_dora": _VARIANT,
    "use_qalora": _VARIANT,
    "use_bdlora": _VARIANT,
    "alora_invocation_tokens": _VARIANT,
    "arrow_config": _VARIANT,
    "kasa_config": _VARIANT,
    "enable_lora": Field("refused", "PEFT up to 0.2: one B for several projections"),
}
"""Fields that are not here are kept, but see `unknown`."""

_EMPTY: dict[str, Any] = {"loftq_config": {}, "bias": "none"}
# Last names of modules that PEFT ties (its `EMBEDDING_LAYER_NAMES`).
_EMBEDDINGS = ("embed_tokens", "lm_head")
# With these, PEFT asks for the tensors of a head, whatever `modules_to_save` says.
_HEADED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def unknown(config: Config) -> str | None:
    """Find a field that may stand for an unknown variant of LoRA.

    PEFT names its variants `use_...` or `..._config`.
    """
    marks = (x for x in config if x.startswith("use_") or x.endswith("_config"))
    return next((x for x in sorted(marks) if config[x] and x not in FIELDS), None)


def passed_on(source: Config, extra: Collection[str]) -> dict[str, Any]:
    """Return the fields independent of the child's ranks and modules.

    Args:
      source: The parent's configuration. No field is added to it.
      extra: PEFT's names of the file's other tensors.
    """
    result = dict(source)
    for key, field in FIELDS.items():
        if key in result and field.fate == "dropped":
            result[key] = _EMPTY.get(key)
    for key in ("runtime_config", "merge_weights"):
        result.pop(key, None)
    if result.get("init_lora_weights") not in (None, True, "gaussian"):
        # These would change the base weights once more on loading, or refuse a rank.
        result["init_lora_weights"] = True
    names = [name.removeprefix(peft_tensors.PREFIX) for name in extra]
    return _restricted(result, names)


def _restricted(config: Config, names: Collection[str]) -> dict[str, Any]:
    """Restrict the fields about other tensors to the tensors in the file."""
    # A configuration must not promise tensors that the file lacks.
    result = dict(config)
    if not any(name.endswith(".bias") for name in names) and result.get("bias"):
        result["bias"] = "none"
    if saved := result.get("modules_to_save"):
        result["modules_to_save"] = [x for x in saved if _is_in(x, names)] or None
        if not result["modules_to_save"] and result.get("task_type") in _HEADED:
            result["task_type"] = None
    tokens = any(".trainable_tokens_delta" in name for name in names)
    if result.get("trainable_token_indices") and not tokens:
        result["trainable_token_indices"] = None
    return result


def _is_in(module: str, names: Collection[str]) -> bool:
    """Decide whether a module has a tensor, by the end of its name: PEFT's rule."""
    parts = [name.split(".")[:-1] for name in names]
    return any(
        ".".join(x[:i]).endswith(module) for x in parts for i in range(1, len(x) + 1)
    )


def ties(config: Config, *, factors: bool) -> dict[str, Any]:
    """Return `ensure_weight_tying` for a child, if its configuration has the field.

    PEFT ties modules in a list of names, but not those that only an expression matches.
    A list in place of the parent's expression would thus give the output layer an
    update that no file has.

    Args:
      config: The child's configuration, with its `modules_to_save`.
      factors: Whether the file holds factors that PEFT ties.
    """
    if not config.get("ensure_weight_tying"):
        return {}
    saved = config.get("modules_to_save") or []
    whole = any(x.rpartition(".")[2] in _EMBEDDINGS for x in saved)
    return {"ensure_weight_tying": factors or whole}
