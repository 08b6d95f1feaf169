"""Names of image models against diffusers' own models, converters and pipelines.

The oracle for a renamed kernel is diffusers' conversion of whole checkpoints
(`loaders/single_file_utils.py`): an update is a weight like another.
"""

import re

import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("diffusers", reason="pip install diffusers")

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_utils

import para_jax as para
from para_jax import cli, diffusion
from tests.engines.image_models import MODELS, flux
from tests.engines.image_models import shapes as modules

pytestmark = [
    pytest.mark.user_defaults,
    pytest.mark.slow,  # Importing diffusers takes most of it.
    pytest.mark.filterwarnings("default"),
]


every_model = pytest.mark.parametrize("name", MODELS)


def adapted(shapes, component, *, rank=2, seed=0):
    """Returns a checkpoint with an update of each weight, in diffusers' names."""
    rng = np.random.default_rng(seed)
    adapters, layers = {}, {}
    for name, (n, channels, *window) in shapes.items():
        path = f"{component}/{name.replace('.', '/')}"
        m = channels * int(np.prod(window))
        a, b = rng.normal(size=(m, rank)), rng.normal(size=(rank, n))
        adapters[path] = para.Adapter(a.astype(np.float32), b.astype(np.float32), 0.5)
        if window:
            layers[path] = para.Layer(kind="conv", window=(*window, channels))
    return para.Checkpoint(adapters=adapters, layers=layers)


def deltas(checkpoint):
    """Returns the update of each module, `[out, in, *window]`, in float64."""
    result = {}
    for path, x in checkpoint.adapters.items():
        full = x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)
        layer = checkpoint.layers.get(path, para.Layer())
        full = full.T
        if layer.kind == "conv":
            *window, channels = layer.window
            full = np.moveaxis(full.reshape(len(full), *window, channels), -1, 1)
        result[path.replace("/", ".")] = full
    return result


def same(got, want, atol=1e-12):
    assert got.keys() == want.keys()
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, atol=atol, err_msg=name)


@every_model
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
# The names in the authors' code that have an underscore of their own.
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


def kohya_state(checkpoint):
    """Returns a state dict as sd-scripts writes it, with alpha for the scale."""
    result = {}
    for path, x in checkpoint.adapters.items():
        layer = checkpoint.layers.get(path, para.Layer())
        a, b = np.asarray(x.a).T, np.asarray(x.b).T
        if layer.kind == "conv":
            a = np.moveaxis(a.reshape(len(a), *layer.window), -1, 1)
            b = b.reshape(*b.shape, *(1 for _ in layer.window[:-1]))
        result[f"{path}.lora_down.weight"] = torch.from_numpy(a.copy())
        result[f"{path}.lora_up.weight"] = torch.from_numpy(b.copy())
        result[f"{path}.alpha"] = torch.tensor(x.scale * x.rank)
    return result


def load(pipeline, component, model, state):
    """Returns the updates that diffusers loads, by module."""
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
    if name == "wan":  # diffusers reads the blocks alone, and each as a whole.
        shapes = {x: y for x, y in shapes.items() if x.startswith("blocks.")}
    theirs = diffusion.convert(adapted(shapes, component), "kohya")
    model = make()
    got = load(pipeline, component, model, kohya_state(theirs))

    want = deltas(diffusion.convert(theirs, "module"))
    same(got, want, atol=1e-5)


def test_a_kohya_file_of_flux_is_split_as_diffusers_splits_it():
    width = 3072  # diffusers knows it by heart. One rank, so that factors are small.
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


# --- The words that the command prints ------------------------------------------------


def write(path, state):
    arrays = {name: x.numpy() for name, x in state.items()}
    safetensors.numpy.save_file(arrays, path)


def printed(capsys, *words):
    """Returns what the command says of loading its result."""
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
    """Returns a pipeline of tiny models, without what makes and shows pictures."""
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
    """Returns the updates in all components, as diffusers' files name them."""
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
