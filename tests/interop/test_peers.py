"""Test the statements of `docs/peers.md` about PEFT's own compression."""

import numpy as np
import peft
import pytest
import torch

import para_jax as para

R, ALPHA = 5, 10.0


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(12, 17, bias=False)
        self.down = torch.nn.Linear(17, 12, bias=False)
        self.window = torch.nn.Conv2d(3, 5, 3)
        self.words = torch.nn.Embedding(7, 4)

    def forward(self, x):
        return self.down(self.up(x))


def adapted(*targets, **settings):
    """Return the model with a random adapter."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules=list(targets), **settings
    )
    model = peft.get_peft_model(Model(), config)
    for name, x in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(x)
            x.data *= 3.0 if ".up." in name else 1.0
    return model


def converted(model, rank):
    with pytest.warns(UserWarning, match="already a LoRA"):
        return peft.convert_to_lora(model, rank)


def test_a_share_of_the_energy_is_of_each_module_and_the_config_says_rank_one(tmp_path):
    model = adapted("up", "down")
    model.save_pretrained(tmp_path)

    config, tensors = converted(model, 0.8)

    parent = para.load(tmp_path)
    want = para.compress(parent, para.Epsilon(0.8, scope="local")).report
    ranks = {x.path: x.kept for x in want.modules}
    assert config.rank_pattern == config.alpha_pattern == ranks
    assert (config.r, config.lora_alpha) == (1, 1)
    a, b = (tensors[f"base_model.model.up.lora_{x}.weight"].numpy() for x in "AB")
    x = parent.adapters["up"]
    s = np.linalg.svd(x.scale * x.a @ x.b, compute_uv=False)[: ranks["up"]]
    np.testing.assert_allclose(np.linalg.svd(b @ a)[1][: len(s)], s, rtol=1e-4)
    together = para.compress(parent, para.Epsilon(0.8)).report
    assert {x.path: x.kept for x in together.modules} != ranks


@pytest.mark.parametrize("layer", ["window", "words"])
def test_convolutions_and_embeddings_are_refused(layer):
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        peft.convert_to_lora(adapted(layer), 2)


def test_dora_is_converted_without_its_magnitude_and_refused_here(tmp_path):
    model = adapted("up", use_dora=True)
    model.save_pretrained(tmp_path)

    _, tensors = converted(model, 12)

    layer = model.base_model.model.up
    a, b = tensors.values()
    x = torch.eye(12)
    with torch.no_grad():
        plain = x @ (layer.base_layer.weight + b @ a).T
        assert (plain - layer(x)).abs().max() > 1
    assert not any("magnitude" in name for name in tensors)
    with pytest.raises(ValueError, match="DoRA"):
        para.load(tmp_path)


def test_one_weighted_adapter_keeps_its_rank():
    model = adapted("up")

    model.add_weighted_adapter(["default"], [1.0], "small", "svd", svd_rank=2)

    assert model.peft_config["small"].r == R
