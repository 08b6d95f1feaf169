"""The names of LoRA tensors in single safetensors files.

A module has a down and an up factor, and may have an alpha and a bias:
- `<module>.lora_down.weight`, `.lora_up.weight`: kohya's sd-scripts, LyCORIS,
  musubi-tuner, OneTrainer. Some put an underscore before `lora_down`.
- `<module>.lora_A.weight`, `.lora_B.weight`: PEFT, diffusers since 0.22, ai-toolkit.
  Mochi's have no `.weight`; a PEFT model's `state_dict()` has `lora_A.default.weight`.
- `<module>.lora.down.weight`, `<module>.lora_linear_layer.down.weight`,
  `<owner>.processor.to_q_lora.down.weight`: diffusers 0.14 to 0.21.
- `<owner>.processor.qkv_lora1.down.weight`: XLabs, for FLUX.1.
- `<module>.alpha`, whatever the factors are called; `lora_B.bias`.

Names such as `lora_unet_down_blocks_0_attn_to_q` stand for paths whose dots became
underscores. No rule can undo that, so they stay as they are. Runs on the host.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from para_jax._adapters.checkpoint import Spelling
from para_jax._adapters.messages import ALPHA_OR_SCALE, Message
from para_jax.formats.peft.tensors import PREFIX, unwrapped

_FACTOR = re.compile(
    r"(?P<module>.+)(?P<sep>[._])"
    r"(?P<pair>lora_(?:down|up)|lora_[AB]"
    r"|lora\.(?:down|up)|lora_linear_layer\.(?:down|up)|(?<=_lora\d\.)(?:down|up))"
    r"(?:(?:\.(?P<adapter>[^.]+))?\.(?P<leaf>weight|bias))?"
)
# A part between dots that marks a tensor of a LoRA.
_MARK = re.compile(
    r"lora|lora_[A-Za-z]+(?:_\d+)?|lora_(?:embedding|linear|magnitude)_\w+|.+_lora(?:_[A-Za-z]+)?"
)
# Names beside factors that could scale them.
_SCALES = re.compile(r"scal|alpha|multiplier|rank")
# Names beside factors that are added to the weight or the bias by themselves, or set
# their shape.
_UPDATES = {
    *("diff", "diff_b", "w_norm", "b_norm", "set_weight", "reshape_weight"),
    *("bias_indices", "bias_values", "bias_size"),  # LyCORIS's sparse bias.
}
_BESIDE = _UPDATES | {"weight", "bias"}
# The same of all modules. CLIP's `logit_scale` is another thing.
_WHOLE_SCALE = re.compile(
    r"(?:(?:lora|network|ss_network)_)?(?:alpha|scale|scaling|multiplier|rank)"
)
# Updates that are not the product of two factors alone (LyCORIS and others).
_VARIANTS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "magnitude": "DoRA",  # ai-toolkit's.
    "lora_mid": "LoCon with a core tensor (Tucker)",
    "lora_E": "AdaLoRA",
    "oft_": "OFT",
    "glora_": "GLoRA",
}
_LYCORIS = re.compile(
    r"(?:lora|lycoris)_[^.]+\.(?:(?P<glora>[ab][12]\.weight)|(?P<ia3>on_input))"
)
# diffusers' text encoders under the names of attention processors.
_PROJECTIONS = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out": "out_proj",
}
_EMBEDDINGS = "bundle_emb."  # OneTrainer's, whose names are the user's words.


class Module(NamedTuple):
    """The tensors of one module, and their names in the file."""

    a: np.ndarray
    b: np.ndarray
    alpha: np.ndarray | None
    bias: np.ndarray | None
    spelling: Spelling


class _Key(NamedTuple):
    """The parts of a factor's name."""

    module: str
    form: tuple[str, str, str, str]  # Separator, family, adapter's name, leaf.
    part: str


def by_module(
    found: Mapping[str, np.ndarray],
) -> tuple[dict[str, Module], dict[str, np.ndarray]]:
    """Sort a file's tensors into modules, by dotted name, and all others.

    Raises:
      ValueError: if a LoRA tensor is not understood, a factor is missing, or two
        adapters are in the file. The message names the tensor.
    """
    found = unwrapped(found)
    for name in found:
        _check_name(name)
    keys = {name: key for name in found if (key := _key(name)) is not None}
    _check_adapters(keys)
    halves: dict[str, dict[str, str]] = {}
    for name, key in keys.items():
        parts = halves.setdefault(key.module, {})
        if key.part in parts:
            raise ValueError(f"'{name}' is there under another name too.")
        parts[key.part] = name
    rest = {name: x for name, x in found.items() if name not in keys}
    modules: dict[str, Module] = {}
    for raw, parts in halves.items():
        _check_complete(raw, parts, keys)
        number = _alpha(raw, keys, parts, rest)
        name = _module(raw, parts)
        if name in modules:
            raise ValueError(f"'{raw}' is there under another name too.")
        modules[name] = _complete(parts, found, number)
        rest.pop(number, None)
    for name in rest:
        _check_rest(name, halves, rest)
    return modules, rest


def _key(name: str) -> _Key | None:
    match = _FACTOR.fullmatch(name)
    if match is None:
        return None
    pair = match["pair"]
    part = "a" if pair.endswith(("down", "A")) else "b"
    family = re.sub(r"[AB]$", "AB", re.sub(r"(?:down|up)$", "", pair))
    leaf = match["leaf"] or ""
    if leaf == "bias":
        if part == "a":
            return None
        part, leaf = "bias", "weight"
    form = match["sep"], family, match["adapter"] or "", leaf
    return _Key(match["module"], form, part)


def _check_name(name: str) -> None:
    if "/" in name:
        raise ValueError(f"'{name}' has a slash in its name, which parts paths here.")
    if name == "lora_controlnet":
        raise ValueError(
            "'lora_controlnet' makes this a Control-LoRA of Stability AI: a ControlNet "
            "as factors (.down, .up) and whole tensors, which is not read."
        )
    if variant := _variant(name):
        raise ValueError(
            f"'{name}' makes this a {variant} adapter: its update is not the "
            "product of two factors alone, so it cannot be compressed as LoRA."
        )


def _variant(name: str) -> str:
    end = name.removesuffix(".weight").rpartition(".")[2]
    for mark, variant in _VARIANTS.items():
        if end.startswith(mark) or f".{mark}." in name:
            return variant
    match = _LYCORIS.fullmatch(name)
    return "" if match is None else "GLoRA" if match["glora"] else "(IA)^3"


def _check_adapters(keys: Mapping[str, _Key]) -> None:
    names = sorted({key.form[2] for key in keys.values()} - {""})
    if len(names) > 1:
        raise ValueError(
            f"it holds several adapters: {', '.join(map(repr, names))}. Save each to a "
            "file of its own."
        )


def _alpha(
    raw: str,
    keys: Mapping[str, _Key],
    parts: Mapping[str, str],
    rest: Mapping[str, np.ndarray],
) -> str:
    """Return the name of a module's alpha in the file, or ""."""
    # An underscore before `lora_down` may be before `alpha` too.
    names = [f"{raw}.alpha"]
    if keys[next(iter(parts.values()))].form[0] == "_":
        names.append(f"{raw}_alpha")
    return next((name for name in names if name in rest), "")


def _check_complete(
    raw: str, parts: Mapping[str, str], keys: Mapping[str, _Key]
) -> None:
    if missing := {"a", "b"} - parts.keys():
        half = "lora_down" if "a" in missing else "lora_up"
        there = next(iter(parts.values()))
        raise ValueError(
            f"'{raw}' has no {half}, one of the two factors (found '{there}')."
        )
    if len({keys[name].form for name in parts.values()}) > 1:
        raise ValueError(
            f"'{parts['a']}' and '{parts['b']}' are named in two ways: no program "
            "reads them as a pair. Rename one of them."
        )


def _complete(
    parts: Mapping[str, str], found: Mapping[str, np.ndarray], number: str
) -> Module:
    for part in ("a", "b"):
        _check_values(parts[part], found[parts[part]])
    bias = parts.get("bias", "")
    return Module(
        a=found[parts["a"]],
        b=found[parts["b"]],
        alpha=found[number] if number else None,
        bias=found[bias] if bias else None,
        spelling=Spelling(a=parts["a"], b=parts["b"], alpha=number, bias=bias),
    )


def _check_values(name: str, value: np.ndarray) -> None:
    if value.size == 0:
        raise ValueError(
            f"'{name}' is empty, of the shape {list(value.shape)}. DeepSpeed's ZeRO-3 "
            "leaves such tensors where each process holds a part: gather the weights "
            "before saving (zero_to_fp32.py, or "
            "stage3_gather_16bit_weights_on_model_save)."
        )


def _module(raw: str, parts: Mapping[str, str]) -> str:
    """Return the name of the module in the model, as far as the key tells it.

    diffusers' first files name the attention's processor: `attn1.processor.to_q_lora`
    is `attn1.to_q` (its `utils/state_dict_utils.py`).
    """
    name = raw.removeprefix(PREFIX)
    if "lora.down" not in parts["a"]:
        return name
    name = name.replace(".processor.", ".")
    owner, dot, leaf = name.rpartition(".")
    if not parts["a"].startswith(f"{raw}_lora."):
        return name
    if owner.endswith("self_attn"):
        return owner + dot + _PROJECTIONS.get(leaf, leaf)
    return f"{name}.0" if leaf == "to_out" else name


def _check_rest(
    name: str, halves: Mapping[str, object], rest: Mapping[str, object]
) -> None:
    if name.startswith(_EMBEDDINGS):
        return
    module, _, end = name.rpartition(".")
    whole = any(f"{module}.{x}" in rest for x in ("diff", "w_norm"))
    if _WHOLE_SCALE.fullmatch(name):
        problem = Message(
            f"'{name}' belongs to no module, and may be a scale of all of them. Say ",
            "it with ",
            ALPHA_OR_SCALE,
            ", and remove it.",
        )
        raise ValueError(problem)
    inside = name.split(".")
    if any(map(_MARK.fullmatch, inside)):
        raise ValueError(
            f"'{name}' is a LoRA tensor of a kind not known here, so it would be left "
            "uncut. Known are lora_down/lora_up, lora_A/lora_B, lora.down/lora.up and "
            "lora_linear_layer.down/up, each with .weight, and .alpha of the module."
        )
    if end == "alpha" and module not in halves and not whole:
        raise ValueError(f"'{module}' has no lora_down, one of the two factors.")
    if module in halves and _SCALES.search(end):
        raise ValueError(
            f"'{name}' may be a scale of the factors beside it, which readers take "
            "differently. Only .alpha is known: multiply it into a factor, and remove "
            "it."
        )
    if module in halves and end not in _BESIDE:
        raise ValueError(
            f"'{name}' is not known here, and may change the meaning of the factors "
            "beside it. Remove it if it does not."
        )


def is_update(name: str) -> bool:
    """Decide whether a tensor other than a factor is part of the update."""
    return name.startswith(_EMBEDDINGS) or name.rpartition(".")[2] in _UPDATES


def default(module: str) -> Spelling:
    """Return kohya's names for the tensors of a module."""
    return Spelling(a=f"{module}.lora_down.weight", b=f"{module}.lora_up.weight")


def alpha(spelling: Spelling) -> str:
    """Return the name of the alpha of a pair of factors."""
    key = _key(spelling.a)
    return f"{spelling.a if key is None else key.module}.alpha"
