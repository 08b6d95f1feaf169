"""Tell the scheme of each module's name. Runs on the host.

- `hf`: transformers' names, and all names not recognised below.
- `module`: diffusers' names inside one model, `mid_block/attentions/0/...`.
- `diffusers`: the same below the pipeline's component, `unet/mid_block/...`.
- `original`: the authors' names, `double_blocks/0/img_attn/qkv`.
- `comfyui`: the same below `diffusion_model/`.
- `kohya`: either with underscores, below `lora_unet_`, `lora_te1_` and the like.
"""

import re
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

from para_jax.names.diffusion import family, text, transformers, unet

Scheme = Literal["hf", "module", "diffusers", "original", "comfyui", "kohya"]

DENOISERS = (
    unet.UNET,
    unet.SD,
    unet.SDXL,
    transformers.FLUX,
    transformers.SD3,
    transformers.WAN,
)
ENCODERS = (text.CLIP, text.T5)

# sd-scripts writes `lora_unet_` for transformers too; the other prefixes are those of
# other trainers.
_KOHYA = re.compile(r"(lora_unet__?|lora_transformer_|lycoris_|lora_te[123]?_)(.+)")
_ENCODER = {
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
_COMFYUI = re.compile(r"(?:model\.)?diffusion_model\.(.+)")
_COMPONENT = re.compile(
    r"(unet|transformer|transformer_2|text_encoder(?:_[23])?)\.(.+)"
)
# Names of attention and blocks that only diffusers uses, as far as is known.
_MODULE = re.compile(
    r"(?:down_blocks|up_blocks|mid_block|(?:single_)?transformer_blocks)\..*"
    r"|(?:.*\.)?(?:to_[qkv]|to_out\.0|to_add_out|add_[qkv]_proj)"
)


class Name(NamedTuple):
    """A module's path, read by its scheme.

    Attributes:
      scheme: The scheme.
      component: The attribute of the pipeline, or "" if the path does not tell.
      rest: The name inside the component.
      separator: The string in `rest` for each dot.
    """

    scheme: Scheme
    component: str
    rest: str
    separator: str = "."


def read(paths: Iterable[str]) -> dict[str, Name]:
    """Read the paths of all modules of a file.

    A bare name such as `proj_out` occurs in several schemes: it follows the scheme of
    the file's other names.

    Example:
      >>> from para_jax.names.diffusion import schemes
      >>> path = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
      >>> schemes.read([path])[path].component
      'text_encoder'
    """
    found = {path: _prefixed(path.replace("/", ".")) for path in paths}
    bare = [path.replace("/", ".") for path, name in found.items() if name is None]
    scheme = _bare(bare)
    return {
        path: name or Name(scheme, "", path.replace("/", "."))
        for path, name in found.items()
    }


def _prefixed(name: str) -> Name | None:
    """Read a name with the prefix of a scheme; None if it has none."""
    if found := _KOHYA.fullmatch(name):
        component = _ENCODER.get(found[1], "")
        return Name("kohya", component, found[2], "_")
    if found := _COMFYUI.fullmatch(name):
        return Name("comfyui", "", found[1])
    found = _COMPONENT.fullmatch(name)
    # A language model may have a module `transformer` too: its names decide.
    if found and (found[1] == "unet" or _is_diffusers(found[2])):
        return Name("diffusers", found[1], found[2])
    return None


def _is_diffusers(name: str) -> bool:
    name = text.in_full(name)
    known = (family.match(x, name, "diffusers") for x in (*DENOISERS, *ENCODERS))
    return bool(_MODULE.fullmatch(name)) or any(known)


def _bare(names: Collection[str]) -> Scheme:
    """Tell the scheme of names without a prefix, by the names inside blocks."""
    # Names outside of numbered blocks (`proj_in`) are the same in several schemes.
    inside = [x for x in names if re.search(r"\.\d+\.", x)]
    if any(_MODULE.fullmatch(x) for x in inside):
        return "module"
    for vocabulary, scheme in (("diffusers", "module"), ("original", "original")):
        if any(family.match(x, y, vocabulary) for x in DENOISERS for y in inside):
            return scheme
    return "hf"
