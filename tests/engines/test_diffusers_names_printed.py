"""Tests of the command's printed code for diffusers' models and pipelines."""

import re

import pytest
import safetensors.numpy

pytest.importorskip("diffusers", reason="pip install diffusers")

import diffusers
import torch
import transformers

import para_jax as para
from para_jax import cli
from para_jax.names import diffusion
from tests.engines.image_checkpoints import adapted, deltas, kohya_state, same
from tests.engines.image_models import MODELS, shapes as modules

pytestmark = [
    pytest.mark.user_defaults,
    pytest.mark.slow,  # Mostly the import of diffusers.
    pytest.mark.filterwarnings("default"),
]
every_model = pytest.mark.parametrize("name", MODELS)


def write(path, state):
    arrays = {name: x.numpy() for name, x in state.items()}
    safetensors.numpy.save_file(arrays, path)


def printed(capsys, *words):
    """Run the command, and return its printed code for loading the result."""
    assert cli.main([str(x) for x in words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    return re.search(r"((?:model|pipe)\.load_\w+\([^)]*\))", out)[1]


FULL = ("convert", "--for", "diffusers")


@every_model
@pytest.mark.parametrize("scheme", ["kohya", "diffusers", "comfyui"])
def test_the_printed_words_load_a_folder(name, scheme, capsys, tmp_path):
    make, component = MODELS[name]
    parent = adapted(modules(make()), component)
    source, folder = tmp_path / "x.safetensors", tmp_path / "folder"
    state = kohya_state(diffusion.convert(parent, scheme))
    write(source, {key.replace("/", "."): x for key, x in state.items()})

    words = printed(capsys, FULL[0], source, folder, *FULL[1:])

    model = make()
    eval(words, {"model": model, "folder": str(folder)})
    got = {
        name: x.get_delta_weight("default_0").detach().double().numpy()
        for name, x in model.named_modules()
        if hasattr(x, "get_delta_weight")
    }
    want = {x.removeprefix(f"{component}."): y for x, y in deltas(parent).items()}
    same(got, want, atol=1e-5)


def pipe(name):
    """Build a pipeline of tiny models, without tokenizers and safety checker."""
    make, _ = MODELS[name]
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1}
    config = transformers.CLIPTextConfig(
        vocab_size=20, num_attention_heads=2, projection_dim=8, **sizes
    )
    one = transformers.CLIPTextModel(config)
    two = transformers.CLIPTextModelWithProjection(config)
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    parts = {"vae": vae, "scheduler": scheduler, "tokenizer": None}
    if name == "sd":
        parts |= {"safety_checker": None, "feature_extractor": None}
        return diffusers.StableDiffusionPipeline(
            unet=make(), text_encoder=one, requires_safety_checker=False, **parts
        )
    if name == "sdxl":
        parts |= {"tokenizer_2": None, "text_encoder_2": two}
        return diffusers.StableDiffusionXLPipeline(
            unet=make(), text_encoder=one, **parts
        )
    if name == "flux":
        parts |= {"tokenizer_2": None, "text_encoder_2": None}
        return diffusers.FluxPipeline(transformer=make(), text_encoder=one, **parts)
    if name == "sd3":
        parts |= {f"tokenizer_{i}": None for i in (2, 3)}
        parts |= {"text_encoder_2": two, "text_encoder_3": None}
        return diffusers.StableDiffusion3Pipeline(
            transformer=make(),
            text_encoder=transformers.CLIPTextModelWithProjection(config),
            **parts,
        )
    parts = {"tokenizer": None, "text_encoder": None, "vae": None}
    return diffusers.WanPipeline(transformer=make(), scheduler=scheduler, **parts)


def loaded(pipeline):
    """Return the updates in all components, as diffusers' files name them."""
    result = {}
    for component, model in pipeline.components.items():
        if isinstance(model, torch.nn.Module):
            for name, x in model.named_modules():
                if hasattr(x, "get_delta_weight"):
                    delta = x.get_delta_weight("default_0").detach().double().numpy()
                    encoder = name.startswith("encoder.layers")
                    inside = f"text_model.{name}" if encoder else name
                    result[f"{component}.{inside}"] = delta
    return result


@every_model
def test_the_printed_words_load_a_file_with_text_encoders(name, capsys, tmp_path):
    pipeline = pipe(name)
    _, component = MODELS[name]
    adapters, layers = {}, {}
    for i, (part, model) in enumerate(pipeline.components.items()):
        if part == component or (part.startswith("text_encoder") and model):
            shapes = modules(model)
            shapes.pop("text_projection", None)
            text = {
                x if "text_model" in x else f"text_model.{x}": y
                for x, y in shapes.items()
            }
            found = adapted(shapes if part == component else text, part, seed=i)
            adapters, layers = adapters | found.adapters, layers | found.layers
    parent = para.Checkpoint(adapters=adapters, layers=layers)
    source, file = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    write(source, kohya_state(diffusion.convert(parent, "kohya")))

    words = printed(capsys, FULL[0], source, file, *FULL[1:])

    eval(words, {"pipe": pipeline, "file": str(file)})
    same(loaded(pipeline), deltas(parent), atol=1e-5)
