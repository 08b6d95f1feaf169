"""Compare our Llama's outputs and generated text with transformers and PEFT."""

import dataclasses

import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from tests.train.models.tiny_llama import CONFIG, IDS, LINEAR, LLAMA3, TIED
from train.models import generate, layers, llama

CONFIGS = {"plain": CONFIG, "tied": TIED, "linear": LINEAR, "llama3": LLAMA3}


def hugging_face(config):
    """Return the transformers configuration of the same shape."""
    values = dataclasses.asdict(config)
    theta, factor = values.pop("rope_theta"), values.pop("rope_factor")
    bounds = values.pop("rope_bounds")
    rope = {"rope_type": "default", "rope_theta": theta}
    if factor != 1:
        rope |= {"rope_type": "linear", "factor": factor}
    if bounds is not None:
        low, high, length = bounds
        rope |= {
            "rope_type": "llama3",
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": int(length),
        }
    return transformers.LlamaConfig(
        **values,
        rope_parameters=rope,
        # Random weights have no meaningful end or padding token.
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="eager",
    )


def randomised(model):
    """Return the model with weights that make every part of it count."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            scale = 0.4 if "norm" in name else 1.5 / np.sqrt(x.shape[-1])
            scale = 0.4 if "embed" in name else scale
            x.copy_(scale * torch.randn(x.shape, generator=generator))
            if "norm" in name:
                x.add_(1)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    """Return each of transformers' models by name."""
    return {
        name: randomised(transformers.LlamaForCausalLM(hugging_face(config)))
        for name, config in CONFIGS.items()
    }


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    place = tmp_path_factory.mktemp("llama")
    for name, model in models.items():
        model.save_pretrained(place / name)
    return place


@pytest.fixture(scope="module")
def base(folders):
    return llama.load(folders / "plain", CONFIG)


def torch_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids, dtype=torch.long)).logits.numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_logits_are_those_of_transformers(models, folders, name):
    config = llama.read_config(folders / name)
    params = llama.load(folders / name, config)

    got = llama.Llama(config).apply({"params": params}, IDS)

    assert config == CONFIGS[name]
    want = torch_logits(models[name], IDS)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert want.std() > 0.3


def test_the_logits_with_an_adapter_are_those_of_peft(models, folders, tmp_path):
    settings = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=[x.rpartition("/")[2] for x in llama.ADAPTED],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    copy = transformers.AutoModelForCausalLM.from_pretrained(folders / "tied")
    model = peft.get_peft_model(copy, settings).eval()
    model.save_pretrained(tmp_path)
    base = llama.load(folders / "tied", TIED)
    adapters = layers.stacked(para.load(tmp_path).adapters, 3)
    lora = para.to_params(adapters)
    layers.check(lora, base)

    got = llama.Llama(TIED).apply({"params": base, "lora": lora}, IDS)

    want = torch_logits(model, IDS)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert np.abs(want - torch_logits(models["tied"], IDS)).max() > 0.3


def test_generation_equals_that_of_transformers_token_for_token(models, base):
    prompts, tokens = [[5, 9, 2, 30, 7, 7, 1], [11, 3], [8, 21, 36, 4]], 9
    width = max(map(len, prompts))
    left = torch.tensor([[0] * (width - len(x)) + x for x in prompts])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in prompts])
    want = models["plain"].generate(
        input_ids=left,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=generate.PAD,
    )[:, width:]

    padded = generate.padded(prompts)
    got = generate.greedy(llama.Llama(CONFIG), {"params": base}, padded, tokens=tokens)

    np.testing.assert_array_equal(got.ids, want.numpy())
    assert len(set(np.asarray(got.ids).ravel().tolist())) > 5
