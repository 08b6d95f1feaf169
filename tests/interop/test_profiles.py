"""Test every profile's and engine's folder, loaded and applied by PEFT itself.

PEFT reads alphas and ranks by name, so it is right for all of them. The engines' other
requirements are simulated in `tests/para_jax/formats`, as none of them can run here.
"""

import copy

import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from para_jax._engines import prepare, profiles, registry
from tests.interop.on_peft import loaded, lora_layers

# Engines that find the modules of language models.
FOLDERS = [
    name
    for name, x in registry.ENGINES.items()
    if x.form == "peft" and "hf" in x.reads and not x.short
]


def llama():
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=13,
        hidden_size=12,
        intermediate_size=10,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config).eval()


TARGETS = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]


def train(base):
    """Return PEFT's random adapter; the second layer's is too small to keep."""
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=TARGETS, rank_pattern={"down_proj": 5}
    )
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for key, x in model.named_parameters():
            if x.requires_grad:
                small = 1e-2 if "layers.1.mlp" in key or "0.self_attn.k" in key else 0.5
                x.copy_(small * torch.randn(x.shape))
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[1, 4, 7, 10], [2, 3, 0, 9]])).logits.numpy()


def with_truncated(base, model, count):
    """Return the base with the `count` largest components of PEFT's deltas, and ranks.

    NumPy's, in float64, of the full matrices.
    """
    svds = {
        name: np.linalg.svd(
            x.get_delta_weight("default").detach().double().numpy(), full_matrices=False
        )
        for name, x in lora_layers(model).items()
    }
    least = np.sort(np.concatenate([x.S for x in svds.values()]))[-count]
    result, ranks = copy.deepcopy(base), {}
    with torch.no_grad():
        for name, (u, s, vt) in svds.items():
            ranks[name] = int((s >= least).sum())
            delta = (u * np.where(s >= least, s, 0)) @ vt
            result.get_submodule(name).weight += torch.from_numpy(delta)
    return result, ranks


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Return the base, the child, the expected model and its ranks."""
    folder = tmp_path_factory.mktemp("parent")
    base = llama()
    model = train(base)
    model.save_pretrained(folder)
    child = para.compress(para.load(folder), para.Gamma(0.25))
    total = sum(x.r["default"] for x in lora_layers(model).values())
    return base, child, *with_truncated(base, model, total // 4)


def assert_serves(family, folder):
    base, _, want, _ = family
    got = loaded(base, folder)
    np.testing.assert_allclose(logits(got), logits(want), atol=2e-5)
    assert np.abs(logits(want) - logits(base)).max() > 0.1
    return {name: x.r["default"] for name, x in lora_layers(got).items()}


@pytest.mark.parametrize("profile", profiles.PROFILES)
def test_peft_applies_every_profile(profile, family, tmp_path):
    _, child, _, ranks = family
    assert 0 in ranks.values()
    para.save(child, tmp_path / "x", profile=profile)

    got = assert_serves(family, tmp_path / "x")

    kept = {name: rank for name, rank in ranks.items() if rank}
    types = {name: name.rpartition(".")[2] for name in ranks}
    most = {x: max(r for n, r in ranks.items() if types[n] == x) for x in TARGETS}
    by_type = {name: most[x] for name, x in types.items() if most[x]}
    padded = dict.fromkeys(ranks, max(kept.values()))
    want = {"padded": padded, "uniform-by-type": by_type}
    assert got == want.get(profile, kept)


@pytest.mark.parametrize("engine", FOLDERS)
def test_peft_applies_what_an_engine_is_given(engine, family, tmp_path):
    para.save(family[1], tmp_path / "x", engine=engine)

    ranks = assert_serves(family, tmp_path / "x")

    (cost,) = (x for x in prepare.costs(family[1]) if x.engine == engine)
    assert max(ranks.values()) == cost.rank
