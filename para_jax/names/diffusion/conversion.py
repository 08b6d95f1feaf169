"""Modules renamed from one scheme to another, with the kernels that change. Host.

Every conversion goes through the names of a diffusers pipeline, where no kernel is
fused. Names alone decide; a name that no family of models has, or that two families
give different meanings, is refused.
"""

import dataclasses
from typing import Literal

from para_jax._adapters.adapter import ordered
from para_jax._adapters.checkpoint import Checkpoint, Spelling
from para_jax._adapters.messages import Argument, Message
from para_jax.names.diffusion import (
    family,
    moving,
    placing,
    schemes,
    text,
    transformers,
)
from para_jax.names.diffusion import unet as unets
from para_jax.names.diffusion.family import Family, Match
from para_jax.names.diffusion.moving import Join, Split
from para_jax.names.diffusion.placing import Placed

Target = Literal["module", "diffusers", "comfyui", "kohya"]

_MIXED = (
    transformers.FLUX,
    transformers.SD3,
)  # ComfyUI maps diffusers' names of these.


def convert(checkpoint: Checkpoint, target: Target) -> Checkpoint:
    """Returns the same update under the names of another scheme.

    - `module`: inside one model of diffusers, whose component's name is dropped.
    - `diffusers`: below the pipeline's components.
    - `comfyui`: what ComfyUI finds, whichever of these models it has loaded.
    - `kohya`: as sd-scripts and musubi-tuner train that model.

    Towards the last, modules that their authors fuse are joined: at their rank if the
    parts share `a`, else at the sum of their ranks.

    Example:
      >>> from para_jax.diffusion import convert
      >>> path = "lora_unet_mid_block_attentions_0_proj_in"
      >>> parent = para_jax.Checkpoint(adapters={path: adapters["up"]})
      >>> list(convert(parent, "diffusers").adapters)
      ['unet/mid_block/attentions/0/proj_in']

    Raises:
      ValueError: if names alone do not decide. The message says which name.
    """
    names = schemes.read([*checkpoint.adapters, *checkpoint.absent])
    if extra := sorted(checkpoint.extra):
        raise ValueError(
            Message(
                f"'{extra[0]}' is not a LoRA factor, and has no name among those of "
                f"{target}. Leave such tensors out with ",
                Argument("adapters_only", True),
                ".",
            )
        )
    if target == "module" and all(x.scheme == "diffusers" for x in names.values()):
        return _stripped(checkpoint)  # So of any model, known here or not.
    placed = placing.place(names)
    moves = {
        path: Split(tuple(_path(x.component, y) for y in x.parts), x.form)
        for path, x in placed.places.items()
    }
    found = moving.split(checkpoint, moves)
    if target == "module":
        return _stripped(found)
    if target == "diffusers":
        return spelled(found)
    write = _kohya if target == "kohya" else _comfyui
    return moving.join(found, write(placed))


def spelled(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with diffusers' names of all tensors that have none."""
    known = {
        path: Spelling(a=f"{name}.lora_A.weight", b=f"{name}.lora_B.weight")
        for path in (*checkpoint.adapters, *checkpoint.absent)
        for name in [path.replace("/", ".")]
    }
    return dataclasses.replace(checkpoint, spelling={**known, **checkpoint.spelling})


def _path(component: str, name: str) -> str:
    return f"{component}/{name.replace('.', '/')}"


def _stripped(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the names inside the only component."""
    paths = ordered([*checkpoint.adapters, *checkpoint.absent])
    found = {path.partition("/")[0]: path for path in reversed(paths)}
    if len(found) > 1:
        raise ValueError(
            f"'{paths[0]}' and others are of {', '.join(sorted(found))}, and a folder "
            "holds the adapter of one model. Write to a path that ends in "
            "'.safetensors', for one file with all of them."
        )
    (component,) = found
    if component.startswith("text_encoder"):
        raise ValueError(
            f"'{paths[0]}' is of a text encoder, which such a folder is not loaded "
            "into. Write to a path that ends in '.safetensors', for one file."
        )
    moves = {path: Split((path.partition("/")[2],)) for path in paths}
    return moving.split(checkpoint, moves)


def _parts(placed: Placed) -> dict[str, tuple[str, str]]:
    """Returns component and dotted name of all parts, by their path."""
    return {
        _path(x.component, name): (x.component, name)
        for x in placed.places.values()
        for name in x.parts
    }


def _comfyui(placed: Placed) -> dict[str, Join]:
    """Returns names that `model_lora_keys_unet` and `_clip` of ComfyUI map."""
    result = {}
    for path, (component, name) in _parts(placed).items():
        known = placed.families[component]
        if component.startswith("text_encoder"):
            result[_encoder(component, name, known, "lora_te1_")] = Join((path,))
        elif component == "unet":
            result[f"lora_unet_{_underscored(name)}"] = Join((path,))
        elif all(x in _MIXED for x in known):
            result[path] = Join((path,))
        else:
            _, match = _original(path, name, known)
            result[_path("diffusion_model", match.original)] = Join((path,))
    return result


def _kohya(placed: Placed) -> dict[str, Join]:
    """Returns the names of sd-scripts and musubi-tuner."""
    result: dict[str, Join] = {}
    first = _first_encoder(placed)
    for path, (component, name) in _parts(placed).items():
        known = placed.families[component]
        if component.startswith("text_encoder"):
            result[_encoder(component, name, known, first)] = Join((path,))
            continue
        one, match = _original(path, name, known)
        inside = name if one == unets.SD else match.original
        target = f"lora_unet_{_underscored(inside)}"
        sources = [None] * len(match.module.parts)
        before = result.get(target, Join(tuple(sources)))
        now = tuple(
            path if i == (match.part or 0) else x for i, x in enumerate(before.sources)
        )
        result[target] = Join(now, match.module.form)
    return result


def _original(path: str, name: str, known: tuple[Family, ...]) -> tuple[Family, Match]:
    """Returns the one family that a name can be of, and its module there."""
    # A UNet's own names say nothing of the model; those of SD and SDXL do.
    found = [
        (x, match)
        for x in known
        if x != unets.UNET and (match := family.match(x, name, "diffusers")) is not None
    ]
    if not found:
        raise ValueError(
            f"'{path}' is in a UNet that is neither Stable Diffusion nor SDXL."
        )
    if len(found) > 1:
        models = " and ".join(x.name for x, _ in found)
        raise ValueError(
            f"'{path}' is the name of a module in {models}, and the other names do not "
            "tell which is meant."
        )
    return found[0]


def _first_encoder(placed: Placed) -> str:
    """Returns the prefix of the first encoder; empty if names do not tell."""
    known = {x for y in placed.families.values() for x in y} - {unets.UNET}
    if "text_encoder_2" in placed.families or known & {unets.SDXL, *_MIXED}:
        return "lora_te1_" if unets.SD not in known else ""
    return "lora_te_" if unets.SD in known else ""


def _encoder(component: str, name: str, known: tuple[Family, ...], first: str) -> str:
    """Returns the name of a module of a text encoder."""
    if text.T5 in known:
        return f"lora_te3_{_underscored(name)}"  # Also where it is the second one.
    if component == "text_encoder_2":
        return f"lora_te2_{_underscored(name)}"
    if not first:
        raise ValueError(
            f"'{component}.{name}' is lora_te_ in Stable Diffusion and lora_te1_ in "
            "SDXL, and the other names do not tell which is meant."
        )
    return f"{first}{_underscored(name)}"


def _underscored(name: str) -> str:
    return name.replace(".", "_")
