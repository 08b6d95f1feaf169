"""Rename modules from one scheme to another, and convert the fused kernels.

Every conversion passes through the names of a diffusers pipeline, which fuses no
kernel. Names alone decide; a name is refused if no family of models has it, or if two
families give it different meanings. Runs on the host.
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
    unet as unets,
)
from para_jax.names.diffusion.family import Family, Match
from para_jax.names.diffusion.moving import Join, Split
from para_jax.names.diffusion.placing import Placed

Target = Literal["module", "diffusers", "comfyui", "kohya"]

# ComfyUI maps diffusers' names of these, beside the authors' names.
_MIXED = (transformers.FLUX, transformers.SD3)


def convert(checkpoint: Checkpoint, target: Target) -> Checkpoint:
    """Return the same update under the names of another scheme.

    - `module`: inside one model of diffusers, without the component's name.
    - `diffusers`: below the pipeline's components.
    - `comfyui`: as ComfyUI looks them up, whichever of these models it has loaded.
    - `kohya`: as sd-scripts and musubi-tuner train the model.

    For `kohya`, modules fused by their authors are joined: at their rank if the parts
    share `a`, else at the sum of their ranks.

    Example:
      >>> from para_jax.names.diffusion import convert
      >>> path = "lora_unet_mid_block_attentions_0_proj_in"
      >>> parent = para_jax.Checkpoint(adapters={path: adapters["up"]})
      >>> list(convert(parent, "diffusers").adapters)
      ['unet/mid_block/attentions/0/proj_in']

    Raises:
      ValueError: if names alone do not decide. The message gives the name.
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
    # Dropping the component needs no family, so it also serves unknown models.
    if target == "module" and all(x.scheme == "diffusers" for x in names.values()):
        return _stripped(checkpoint)
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
    """Add diffusers' names for all tensors without a spelling of their own."""
    known = {
        path: Spelling(a=f"{name}.lora_A.weight", b=f"{name}.lora_B.weight")
        for path in (*checkpoint.adapters, *checkpoint.absent)
        for name in [path.replace("/", ".")]
    }
    return dataclasses.replace(checkpoint, spelling={**known, **checkpoint.spelling})


def _path(component: str, name: str) -> str:
    return f"{component}/{name.replace('.', '/')}"


def _stripped(checkpoint: Checkpoint) -> Checkpoint:
    """Drop the name of the only component from all paths."""
    paths = ordered([*checkpoint.adapters, *checkpoint.absent])
    found = {path.partition("/")[0] for path in paths}
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
    """Return the component and the dotted name of all parts, by their path."""
    return {
        _path(x.component, name): (x.component, name)
        for x in placed.places.values()
        for name in x.parts
    }


def _comfyui(placed: Placed) -> dict[str, Join]:
    """Return names in the tables of ComfyUI's `model_lora_keys_unet` and `_clip`."""
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
    """Return the names of sd-scripts and musubi-tuner, with the parts to be fused."""
    result: dict[str, Join] = {}
    first = _first_encoder(placed)
    for path, (component, name) in _parts(placed).items():
        known = placed.families[component]
        if component.startswith("text_encoder"):
            result[_encoder(component, name, known, first)] = Join((path,))
            continue
        one, match = _original(path, name, known)
        # sd-scripts trains Stable Diffusion on diffusers' UNet, and SDXL on LDM's.
        inside = name if one == unets.SD else match.original
        target = f"lora_unet_{_underscored(inside)}"
        # Parts of one fused module arrive one by one; those that do not stay None.
        sources: list[str | None] = [None] * len(match.module.parts)
        if target in result:
            sources = list(result[target].sources)
        sources[match.part or 0] = path
        result[target] = Join(tuple(sources), match.module.form)
    return result


def _original(path: str, name: str, known: tuple[Family, ...]) -> tuple[Family, Match]:
    """Return the only family with a module of this name, and its match."""
    # UNET has the names of any UNet; the tables of SD and SDXL identify the model.
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
    """Return the prefix of the first encoder; "" if the names do not tell."""
    known = {x for y in placed.families.values() for x in y} - {unets.UNET}
    if "text_encoder_2" in placed.families or known & {unets.SDXL, *_MIXED}:
        return "lora_te1_" if unets.SD not in known else ""
    return "lora_te_" if unets.SD in known else ""


def _encoder(component: str, name: str, known: tuple[Family, ...], first: str) -> str:
    """Return the name of a text encoder's module."""
    # T5 is `te3` in sd-scripts even for FLUX.1, which has it as its second encoder.
    if text.T5 in known:
        return f"lora_te3_{_underscored(name)}"
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
