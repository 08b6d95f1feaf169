"""Tell whether the names in a file of PEFT are those of an older transformers.

Needs no library: `RENAMES` lists what transformers renamed, by the modules of its
models in the releases 4.51 to 5.24. No module of the 833 models that transformers 5.24
builds from their default configurations has such a name, `others` apart.
"""

import fnmatch
import re
from collections.abc import Sequence
from typing import NamedTuple

from para_jax._adapters.adapter import Adapters
from para_jax._adapters.checkpoint import Checkpoint, as_checkpoint
from para_jax._adapters.messages import Message, Remedy


class Rename(NamedTuple):
    """One rename of transformers.

    Attributes:
      former: A regular expression of the paths before.
      release: The first release with the new names.
      what: What it changed.
      classes: The classes of models with it; all, if none are listed.
      others: Classes of models that still have such names. `*` is any text.
    """

    former: str
    release: str
    what: str
    classes: Sequence[str] = ()
    others: Sequence[str] = ()


_VITS = "vit|deit|beit|ijepa|vivit|audio_spectrogram_transformer"
_VIT_CLASSES = ("ViTModel", "DeiTModel", "BeitModel", "IJepaModel", "ViTMSNModel")
_IMAGES = ("SiglipVisionModel", "Siglip2VisionModel", "CLIPVisionModel")
_TEXTS = ("SiglipTextModel", "Siglip2TextModel", "CLIPTextModel")
_QWEN_VL = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
)
_NESTED = ("Blip2*", "InstructBlip*", "Llama4ForConditionalGeneration", "NemotronH*")

RENAMES: tuple[Rename, ...] = (
    Rename(
        r"language_model/(model/.*|lm_head)",
        "4.52",
        "'language_model.model' of LLaVA, Gemma 3, PaliGemma and the like became "
        "'model.language_model'",
        others=_NESTED,
    ),
    Rename(
        r"visual/blocks/\d+/.*",
        "4.52",
        "'visual' of Qwen2-VL became 'model.visual'",
        others=["*Model"],  # A bare model has no level around its parts.
    ),
    Rename(
        r"model/layers/\d+/.*",
        "4.52",
        "'model' of Qwen2-VL became 'model.language_model'",
        classes=_QWEN_VL,
    ),
    Rename(
        r"(.*/)?experts/\d+/(w[123]|gate_proj|up_proj|down_proj)",
        "5.0",
        "the experts of a layer became two parameters, 'experts.gate_up_proj' and "
        "'experts.down_proj'",
    ),
    Rename(
        r"(.*/)?block_sparse_moe/gate",
        "5.0",
        "'block_sparse_moe' of Mixtral and Phi-3.5-MoE became 'mlp'",
    ),
    Rename(
        r"(.*/)?vision_tower/vision_model/.*",
        "5.6",
        "SigLIP and CLIP lost the level 'vision_model'",
    ),
    Rename(
        r"vision_model/.*",
        "5.6",
        "SigLIP's and CLIP's image encoders lost the level 'vision_model'",
        classes=_IMAGES,
    ),
    Rename(
        r"text_model/.*",
        "5.6",
        "SigLIP's and CLIP's text encoders lost the level 'text_model'",
        classes=_TEXTS,
    ),
    Rename(
        rf"({_VITS})/encoder/layer/\d+/.*",
        "5.9",
        "the layers of ViT and models like it are 'layers', with other names inside",
    ),
    Rename(
        r"encoder/layer/\d+/.*",
        "5.9",
        "the layers of ViT and models like it are 'layers', with other names inside",
        classes=_VIT_CLASSES,
    ),
    Rename(
        r"dinov2(_with_registers)?/encoder/layer/\d+/"
        r"(attention/(attention|output)/.*|mlp/weights_(in|out))",
        "5.18",
        "DINOv2's attention and gated MLP have other names inside",
    ),
    Rename(
        r"encoder/layer/\d+/(attention/(attention|output)/.*|mlp/weights_(in|out))",
        "5.18",
        "DINOv2's attention and gated MLP have other names inside",
        classes=("Dinov2Model", "Dinov2WithRegistersModel"),
    ),
)
"""The renames, by release."""


def former(checkpoint: Checkpoint | Adapters) -> tuple[str, ...]:
    """Return a note for each rename of transformers that a PEFT file is older than.

    PEFT on a newer transformers renames some adapters on loading and drops others, in
    silence or with a warning. `to_installed` writes the new names.

    Example:
      >>> from para_jax import names
      >>> path = "vit/encoder/layer/0/attention/attention/query"
      >>> parent = para_jax.Checkpoint(
      ...     adapters={path: adapters["up"]}, config={"peft_type": "LORA"}
      ... )
      >>> (note,) = names.former(parent)
      >>> note[:67]
      "'vit/encoder/layer/0/attention/attention/query' is a name of before"

    Args:
      checkpoint: The adapters. Only those read from a file of PEFT have notes: the
        names in others are not transformers'.
    """
    checkpoint = as_checkpoint(checkpoint)
    if checkpoint.config.get("peft_type") != "LORA" or checkpoint.tree is not None:
        return ()
    mapping = checkpoint.config.get("auto_mapping") or {}
    trained = str(mapping.get("base_model_class"))
    notes = {}
    for rename in RENAMES:
        if not _is_of(rename, trained):
            continue
        pattern = re.compile(rename.former)
        found = [path for path in checkpoint.adapters if pattern.fullmatch(path)]
        if found:
            notes.setdefault(rename.what, _note(rename, found))
    return tuple(notes.values())


def _is_of(rename: Rename, trained: str) -> bool:
    if any(fnmatch.fnmatchcase(trained, x) for x in rename.others):
        return False
    return not rename.classes or trained in rename.classes


def _note(rename: Rename, found: Sequence[str]) -> str:
    more = len(found) - 1
    which = (
        f"'{found[0]}' and {more} more are names" if more else f"'{found[0]}' is a name"
    )
    return Message(
        f"{which} of before transformers {rename.release}: {rename.what}. PEFT on a "
        "newer one may leave such an adapter out. For the new names: ",
        Remedy.NEW_NAMES,
        ".",
    )
