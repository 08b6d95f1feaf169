"""Scales stated outside the tensors of a single file.

In its header: `alpha`, `lora_alpha`, `network_alpha` or `ss_network_alpha`, with a rank
or without; `<component>.lora_alpha` and `<component>.r`; LoRA configurations as JSON,
such as diffusers' `lora_adapter_metadata`, which has one for each component. Beside it:
PEFT's `adapter_config.json`, and mistral's `params.json` with `{"lora": {"rank",
"scaling"}}` (mistral-inference `src/mistral_inference/lora.py`).

A statement holds for a module if its rank is the tensors'. Statements that disagree, or
do not cover a module, are refused. Runs on the host.
"""

import math
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from para_jax._adapters.checkpoint import Checkpoint
from para_jax._adapters.messages import Message
from para_jax.formats import tensor_files
from para_jax.formats.kohya import headers
from para_jax.formats.peft import config as peft_config

_ALPHAS = ("alpha", "lora_alpha", "network_alpha", "ss_network_alpha")
_RANKS = (
    *("rank", "r", "lora_rank", "lora_dim"),
    *("network_dim", "network_rank", "ss_network_dim"),
)
_SCALES = ("scale", "scaling", "lora_scale", "lora_scaling")
# The prefixes of kohya's names, for each component of a pipeline.
_COMPONENTS = {
    "unet": ("lora_unet_",),
    "transformer": ("lora_unet_", "lora_transformer_"),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
}
_TRUE = ("true", "1", "yes")


class Shape(NamedTuple):
    """A module's rank, and whether its kernel is larger than one pixel."""

    rank: int
    window: bool


Modules = Mapping[str, Shape]


class Statement(NamedTuple):
    """A place that states scales.

    Attributes:
      where: Its name, for messages.
      scale: Computes the scale of a module; None if it does not cover it.
      whole: Whether it should cover every module.
      residual: The initialisation that changed the base weights, if any.
    """

    where: str
    scale: Callable[[str, Shape], float | None]
    whole: bool = True
    residual: str = ""


def statements(metadata: Mapping[str, str], modules: Modules) -> list[Statement]:
    """Return the statements in a header.

    Raises:
      ValueError: if a configuration in it is not of plain LoRA.
    """
    found = []
    if any(key in metadata for key in (*_ALPHAS, *_SCALES, "conv_alpha")):
        found.append(_numbers(metadata, modules))
    said = {k: x for k, x in metadata.items() if not k.startswith(headers.PREFIXES)}
    # Some writers flatten the configuration of each component to dotted keys.
    flat = {key: x for key, x in said.items() if "." in key}
    found += _components("the header", flat)
    found += _incomplete("the header", said, (*_ALPHAS, "conv_alpha"))
    for key, value in said.items():
        if key == "network_args":
            continue  # Part of `_numbers`, as `ss_network_args` is.
        found += _configs(f"'{key}' in the header", headers.parsed(value))
    return found


def beside(path: pathlib.Path) -> list[Statement]:
    """Return the statements about a file in the files beside it.

    An `adapter_config.json` beside `adapter_model.safetensors` belongs to that one.

    Raises:
      ValueError: if a configuration is broken, or not of plain LoRA.
    """
    found = []
    config = path.with_name("adapter_config.json")
    other = path.with_name("adapter_model.safetensors")
    if config.is_file() and (other == path or not other.exists()):
        found.append(_config(f"'{config}'", "", tensor_files.read_json(config)))
    params = path.with_name("params.json")
    if params.is_file():
        lora = tensor_files.read_json(params).get("lora")
        if isinstance(lora, dict):
            found.append(_mistral(f"'{params}'", lora))
    return found


def check_alone(path: pathlib.Path, written: Checkpoint) -> None:
    """Raise ValueError if a file without alphas would get another's scales."""
    # A reader looks beside the file only for scales that the tensors lack.
    if any(x.alpha for x in written.spelling.values()):
        return
    if found := beside(path):
        raise ValueError(
            f"'{path}' holds no alphas, and {found[0].where} beside it belongs to "
            "another file, but would be read with this one. Save it in another folder."
        )


def _numbers(metadata: Mapping[str, str], modules: Modules) -> Statement:
    """State the scales by the header's own numbers: an alpha, and perhaps a rank."""
    arguments: dict[str, Any] = dict(metadata)
    for key in ("network_args", "ss_network_args"):
        arguments |= headers.parsed(metadata.get(key, ""))
    rooted = _is_rooted(metadata) or _is_rooted(arguments)

    def scale(_: str, shape: Shape) -> float | None:
        _check_unscaled(metadata)
        alpha, rank = _alpha_and_rank(metadata, arguments, shape)
        if alpha is None:
            return None
        # sd-scripts has separate numbers for convolutions, so ranks are compared apart.
        several = len({x.rank for x in modules.values() if x.window == shape.window})
        if rank is None and several > 1:
            raise ValueError(
                f"alpha is {alpha:g} in the header, for which of {several} ranks it "
                "does not say"
            )
        if rank is not None and rank != shape.rank:
            raise ValueError(f"the header's alpha is for the rank {rank:g}")
        return alpha / (math.sqrt(shape.rank) if rooted else shape.rank)

    there = [key for key in (*_ALPHAS, *_SCALES, "conv_alpha") if key in metadata]
    return Statement(f"'{there[0]}' in the header", scale, whole=False)


def _is_rooted(fields: Mapping[str, Any]) -> bool:
    """Decide whether alpha is divided by the root of the rank (rsLoRA)."""
    keys = ("use_rslora", "rs_lora", "rslora")
    return any(str(fields.get(key, "")).lower() in _TRUE for key in keys)


def _check_unscaled(metadata: Mapping[str, str]) -> None:
    # Beside an alpha, any other scale than 1 leaves open which of the two holds.
    for key in _SCALES:
        if _number(key, metadata.get(key, "1")) not in (1.0, None):
            raise ValueError(f"'{key}' is {metadata[key]} in the header")


def _alpha_and_rank(
    metadata: Mapping[str, str], arguments: Mapping[str, Any], shape: Shape
) -> tuple[float | None, float | None]:
    """Return the header's alpha for a module, and the rank stated with it."""
    if shape.window and arguments.keys() & {"conv_dim", "conv_alpha"}:
        # 1 if left out, as sd-scripts' `networks/lora.py` has it.
        alpha = _number("conv_alpha", str(arguments.get("conv_alpha", 1)))
        return alpha, _number("conv_dim", str(arguments.get("conv_dim", "")))
    return _one(metadata, _ALPHAS), _one(metadata, _RANKS)


def _one(metadata: Mapping[str, str], keys: tuple[str, ...]) -> float | None:
    found = {key: _number(key, metadata[key]) for key in keys if key in metadata}
    values = {x for x in found.values() if x is not None}
    if len(values) > 1:
        said = ", ".join(f"{key} {metadata[key]}" for key in found)
        raise ValueError(f"the header disagrees with itself ({said})")
    return values.pop() if values else None


def _number(key: str, text: str) -> float | None:
    if text.strip().lower() in ("", "none", "null"):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"'{key}' is '{text}' in the header, which is not a number")
    return value


def _configs(where: str, found: Mapping[str, Any]) -> list[Statement]:
    """Return the LoRA configurations in a JSON object: one, or one a component."""
    if "lora_alpha" in found and "r" in found:
        return [_config(where, "", found)]
    nested = {k: x for k, x in found.items() if isinstance(x, dict)}
    inside = {k: x for k, x in nested.items() if "lora_alpha" in x and "r" in x}
    several = [_config(where, name, config) for name, config in inside.items()]
    several += _incomplete(where, found)
    for name in nested.keys() - inside.keys():
        several += _incomplete(f"'{name}' of {where}", nested[name])
    return several + _components(where, found)


def _components(where: str, flat: Mapping[str, Any]) -> list[Statement]:
    """Return the configurations in flat keys such as `unet.lora_alpha`."""
    names = headers.components(flat)
    result = []
    for name in names:
        inside = {k: x for k, x in flat.items() if k.startswith(f"{name}.")}
        config = {k.removeprefix(f"{name}."): _plain(x) for k, x in inside.items()}
        result.append(_config(f"'{name}.lora_alpha' of {where}", name, config))
    return result


def _incomplete(
    where: str, found: Mapping[str, Any], known: Collection[str] = ()
) -> list[Statement]:
    """Return statements without a scale, for alphas without a rank."""
    starts = tuple(f"{name}." for name in headers.components(found))

    def scale(*_: Any) -> float:
        raise ValueError("it says no rank with it")

    return [
        Statement(f"'{key}' of {where}", scale)
        for key in found
        if headers.is_alpha(key) and key not in known and not key.startswith(starts)
    ]


def _plain(value: Any) -> Any:
    """Parse a number, a flag or an object in a header's text."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[value.lower()]
    try:
        number = float(value)
    except ValueError:
        return dict(headers.parsed(value)) or value
    return int(number) if number.is_integer() else number


def _config(where: str, component: str, config: Mapping[str, Any]) -> Statement:
    try:
        peft_config.check({"peft_type": "LORA"} | dict(config))
    except ValueError as error:
        raise ValueError(Message(f"{where}: ", error)) from error
    starts = (f"{component}.", *_COMPONENTS.get(component, ())) if component else ("",)
    patterns = config.get("rank_pattern") or config.get("alpha_pattern")

    def scale(name: str, shape: Shape) -> float | None:
        start = next((x for x in starts if name.startswith(x)), None)
        if start is None:
            return None
        inside = name.removeprefix(start)
        # kohya's names have underscores for dots, which cannot be undone.
        if patterns and start.endswith("_"):
            raise ValueError("its patterns name modules with dots")
        if (rank := peft_config.rank(config, inside)) != shape.rank:
            raise ValueError(f"it says {rank} for its rank")
        return peft_config.scale(config, inside)

    return Statement(where, scale, residual=peft_config.residual(config))


def ones(where: str) -> Statement:
    """Return the statement of a scale of 1 for all modules."""
    return Statement(where, lambda *_: 1.0)


def _mistral(where: str, lora: Mapping[str, Any]) -> Statement:
    rank, scaling = (lora.get(key) for key in ("rank", "scaling"))

    def scale(_: str, shape: Shape) -> float | None:
        if not isinstance(scaling, (int, float)) or not math.isfinite(scaling):
            raise ValueError(f"its scaling is {scaling!r}")
        if rank != shape.rank:
            raise ValueError(f"it says {rank} for its rank")
        return float(scaling)

    return Statement(where, scale)
