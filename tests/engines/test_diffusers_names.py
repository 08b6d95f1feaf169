"""Tests of image models' names against diffusers' models, converters and pipelines.

The oracle for a renamed kernel is diffusers' conversion of whole checkpoints
(`loaders/single_file_utils.py`), since an update has the same layout as its weight.
"""

import re

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="pip install diffusers")

import diffusers
import torch
from diffusers.loaders import single_file_utils

from para_jax.names import diffusion
from tests.engines.image_checkpoints import adapted, deltas, kohya_state, same
from tests.engines.image_models import MODELS, flux, shapes as modules

pytestmark = [
    pytest.mark.user_defaults,
    pytest.mark.slow,  # Mostly the import of diffusers.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["kohya", "comfyui"])
def test_every_module_of_a_model_goes_there_and_back(name, target):
    make, component = MODELS[name]
    parent = adapted(modules(make()), component)

    there = diffusion.convert(parent, target)
    back = diffusion.convert(there, "diffusers")

    same(deltas(back), deltas(parent))
    assert back.layers == parent.layers
    again = diffusion.convert(back, target)
    same(deltas(again), deltas(there))
    inside = diffusion.convert(there, "module")
    assert {x.replace("/", ".") for x in inside.adapters} == modules(make()).keys()


# --- diffusers' own conversions -------------------------------------------------------

WEIGHTS = {
    "sd3": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    "wan": single_file_utils.convert_wan_transformer_to_diffusers,
}
# The names in the authors' code with an underscore of their own.
WORDS = {
    "sd3": r"joint_blocks|(?:x|context)_block|adaLN_modulation|final_layer"
    r"|(?:x|t|y|context)_embedder",
    "wan": r"(?:self|cross)_attn|(?:patch|text|time)_embedding|time_projection"
    r"|[kv]_img|img_emb",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_update_is_converted_as_diffusers_converts_whole_weights(name):
    make, component = MODELS[name]
    parent = adapted(modules(make()), component)
    parts = re.compile(rf"({WORDS[name]})|_")
    whole = {"pos_embed": torch.zeros(1)} if name == "sd3" else {}
    for key, x in deltas(diffusion.convert(parent, "kohya")).items():
        theirs = key.removeprefix("lora_unet_")
        dotted = parts.sub(lambda x: x[1] or ".", theirs)
        whole[f"{dotted}.weight"] = torch.from_numpy(x)
        whole[f"{dotted}.bias"] = torch.zeros(len(x))

    got = WEIGHTS[name](whole)

    for key, x in deltas(parent).items():
        found = got[key.removeprefix(f"{component}.") + ".weight"]
        np.testing.assert_allclose(found, x, atol=1e-12, err_msg=key)


def load(pipeline, component, model, state):
    """Load a state dict with diffusers, and return its updates by module."""
    config = {"unet_config": model.config} if component == "unet" else {}
    found = pipeline.lora_state_dict(state, **config)
    state, alphas = found if isinstance(found, tuple) else (found, None)
    words = {component: model, "adapter_name": "x", "_pipeline": None}
    if component == "unet" or alphas:
        words["network_alphas"] = alphas
    getattr(pipeline, f"load_lora_into_{component}")(state, **words)
    return {
        name: x.get_delta_weight("x").detach().double().numpy()
        for name, x in model.named_modules()
        if hasattr(x, "get_delta_weight") and "x" in x.lora_A
    }


KOHYA = {
    "sd": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "wan": diffusers.WanPipeline,
}


@pytest.mark.parametrize("name", KOHYA)
def test_a_kohya_file_is_read_as_diffusers_reads_it(name):
    make, component = MODELS[name]
    pipeline = KOHYA[name]
    shapes = modules(make())
    if name == "wan":  # diffusers reads only the blocks, each as a whole.
        shapes = {x: y for x, y in shapes.items() if x.startswith("blocks.")}
    theirs = diffusion.convert(adapted(shapes, component), "kohya")
    model = make()
    got = load(pipeline, component, model, kohya_state(theirs))

    want = deltas(diffusion.convert(theirs, "module"))
    same(got, want, atol=1e-5)


def test_a_kohya_file_of_flux_is_split_as_diffusers_splits_it():
    width = 3072  # Hard-coded in diffusers. One rank keeps the factors small.
    shapes = {
        name: tuple(width * (x // 16) if x % 16 == 0 else x for x in shape)
        for name, shape in modules(flux()).items()
        if "blocks.0" in name and "blocks.1" not in name
    }
    theirs = diffusion.convert(adapted(shapes, "transformer", rank=1), "kohya")
    assert {path: x.rank for path, x in theirs.adapters.items()}[
        "lora_unet_single_blocks_0_linear1"
    ] == 4

    state = diffusers.FluxPipeline.lora_state_dict(kohya_state(theirs))

    ours = diffusion.convert(theirs, "diffusers")
    for path, x in ours.adapters.items():
        name = path.replace("/", ".")
        a, b = (state[f"{name}.lora_{half}.weight"].double().numpy() for half in "AB")
        probe = np.random.default_rng(0).normal(size=(3, x.inputs))
        want = probe @ np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)
        np.testing.assert_allclose(
            probe @ a.T @ b.T, x.scale * want, rtol=1e-5, atol=1e-4, err_msg=path
        )
