"""Compare our SigLIP's outputs with transformers, also with PEFT's adapters."""

import dataclasses

import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from tests.benchmarks.torch_backbones import SiglipClassifier
from train.models import bicubic, layers, siglip

LAYERS = 3
VISION = {
    "hidden_size": 12,
    "intermediate_size": 14,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,
    "num_channels": 2,
    "image_size": 20,
    "patch_size": 4,
}
TEXT = {**VISION, "vocab_size": 11, "pad_token_id": 1, "bos_token_id": 2}
TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture(scope="module")
def whole():
    """Return a model of both towers."""
    text = {**TEXT, "eos_token_id": 3}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    for x in model.parameters():  # Zeros and ones would hide mistakes.
        torch.nn.init.normal_(x, mean=0.05, std=0.4)
    return model


@pytest.fixture(scope="module")
def folder(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("siglip")
    whole.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def torch_model(whole):
    torch.manual_seed(2)
    model = SiglipClassifier(whole.vision_model).eval()
    torch.nn.init.normal_(model.classifier.weight)
    return model


@pytest.fixture(scope="module")
def config(folder):
    return siglip.read_config(folder)


@pytest.fixture(scope="module")
def params(folder, config, torch_model):
    head = torch_model.classifier
    return {
        "vision_model": siglip.load(folder, config),
        "classifier": {
            "kernel": head.weight.detach().numpy().T,
            "bias": head.bias.detach().numpy(),
        },
    }


@pytest.fixture(scope="module")
def peft_folder(torch_model, tmp_path_factory):
    """Save a rank-2 adapter on all linear layers of two of the three blocks."""
    path = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=rf".*encoder\.layers\.[02]\..*({'|'.join(TARGETS)})",
        rank_pattern={"vision_model.encoder.layers.2.mlp.fc1": 2},
    )
    model = peft.get_peft_model(copied(torch_model), config)
    for name, x in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(x, std=0.3)
    model.save_pretrained(path)
    return path


def copied(model):
    encoder = transformers.SiglipVisionModel(model.vision_model.config)
    twin = SiglipClassifier(encoder)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def images(height=20, width=20):
    shape = (4, height, width, 2)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def torch_logits(model, x):
    with torch.no_grad():
        return model(torch.tensor(x).permute(0, 3, 1, 2)).numpy()


def flax_logits(config, params, x, adapters=None):
    lora = para.to_params(adapters or {})
    layers.check(lora, params)
    model = siglip.SiglipClassifier(config, 3)
    return np.asarray(model.apply({"params": params, "lora": lora}, x))


@pytest.mark.parametrize(("height", "width"), [(20, 20), (32, 32), (12, 28), (17, 21)])
@pytest.mark.slow
def test_the_logits_are_those_of_transformers_at_every_resolution(
    torch_model, config, params, height, width
):
    x = images(height, width)

    got = flax_logits(config, params, x)

    want = torch_logits(torch_model, x)
    assert np.ptp(want, axis=0).min() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["ragged", "stacked"])
def test_the_logits_with_an_adapter_are_those_of_peft(
    torch_model, config, params, peft_folder, form
):
    adapters = dict(para.load(peft_folder).adapters)
    if form == "stacked":
        adapters = layers.stacked(adapters, LAYERS, path=siglip.STACK)
        assert adapters.keys() == {f"{siglip.STACK}/{x}" for x in siglip.ADAPTED}

    got = flax_logits(config, params, images(), adapters)

    model = peft.PeftModel.from_pretrained(copied(torch_model), peft_folder).eval()
    want = torch_logits(model, images())
    assert np.abs(want - torch_logits(torch_model, images())).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_a_ragged_child_of_a_stack_is_what_peft_computes(
    torch_model, config, params, peft_folder, tmp_path
):
    source = para.load(peft_folder)
    stacks = layers.stacked(source.adapters, LAYERS, path=siglip.STACK)
    child = para.compress(stacks, para.Gamma(0.25))
    own = layers.unstacked(child.adapters, path=siglip.STACK)
    assert len({x.rank for x in own.values()}) > 1

    got = flax_logits(config, params, images(), own)

    padded = layers.stacked(own, LAYERS, path=siglip.STACK)
    scanned = flax_logits(config, params, images(), padded)
    np.testing.assert_allclose(scanned, got, rtol=0, atol=1e-5)
    para.save(para.Checkpoint(adapters=own), tmp_path / "child", format="peft")
    model = peft.PeftModel.from_pretrained(copied(torch_model), tmp_path / "child")
    want = torch_logits(model.eval(), images())
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["SiglipVisionModel", "SiglipForImageClassification"])
def test_the_encoder_is_found_alone_and_under_a_classifier(
    whole, config, params, tmp_path, kind
):
    vision = whole.vision_model
    if kind == "SiglipVisionModel":
        model = vision
    else:
        model = transformers.SiglipForImageClassification(whole.config)
        model.vision_model.load_state_dict(vision.state_dict())
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1

    assert siglip.read_config(tmp_path) == config
    flat = para.unnest(params["vision_model"])
    for path, x in para.unnest(siglip.load(tmp_path, config)).items():
        np.testing.assert_array_equal(x, flat[path], err_msg=path)


def test_bfloat16_logits_are_near_those_of_transformers(torch_model, config, folder):
    params = {"vision_model": siglip.load(folder, config, "bfloat16")}
    x = images()

    got = siglip.Siglip(config).apply(
        {"params": params["vision_model"]}, x.astype("bfloat16")
    )

    encoder = copied(torch_model).vision_model.to(torch.bfloat16)
    with torch.no_grad():
        inputs = torch.tensor(x).permute(0, 3, 1, 2).to(torch.bfloat16)
        want = encoder(inputs).pooler_output.float().numpy()
    assert got.dtype == "bfloat16"
    scale = np.abs(want).max()
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=0, atol=0.03 * scale)


def test_the_defaults_of_the_configuration_are_those_of_transformers():
    want = transformers.SiglipVisionConfig()

    for field in dataclasses.fields(siglip.Config):
        assert field.default == getattr(want, field.name)


@pytest.mark.parametrize("new", [(7, 3), (2, 9), (5, 4), (1, 1)])
def test_a_resized_grid_is_that_of_pytorch(new):
    table = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)

    got = bicubic.resized(table, *new)

    want = torch.nn.functional.interpolate(
        torch.tensor(table).permute(2, 0, 1)[None], size=new, mode="bicubic"
    )
    np.testing.assert_allclose(got, want[0].permute(1, 2, 0), rtol=0, atol=1e-5)
