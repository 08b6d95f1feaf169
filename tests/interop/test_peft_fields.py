"""Test the fields of a child's configuration with the installed PEFT.

Children without the parent's other tensors load, and apply the remaining update.
"""

import copy
import dataclasses
import json

import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from para_jax.formats.peft import fields as peft_fields
from tests.interop.on_peft import loaded, lora_layers

pytestmark = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`:UserWarning",
    "ignore:Model has `tie_word_embeddings:UserWarning",
    "ignore:lora with eva initialization:UserWarning",
)


def test_every_field_of_peft_is_in_the_table():
    fields = {x.name for x in dataclasses.fields(peft.LoraConfig)}

    assert fields <= peft_fields.FIELDS.keys()


def test_what_is_refused_is_what_peft_has_a_variant_for():
    fields = {x.name: x for x in dataclasses.fields(peft.LoraConfig)}
    refused = {x for x, field in peft_fields.FIELDS.items() if field.fate == "refused"}

    for name in refused - {"enable_lora"}:  # Of PEFT before 0.3.
        assert fields[name].default in (None, False)


SIZES = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "attention_bias": True,
    "pad_token_id": 0,
}


def llama(tie=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=tie)
    return transformers.LlamaForCausalLM(config).eval()


def classifier():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_labels=3)
    return transformers.LlamaForSequenceClassification(config).eval()


CASES = {
    "nothing else": (llama, {}),
    "modules_to_save": (llama, {"modules_to_save": ["lm_head", "norm"]}),
    "saved embeddings": (llama, {"modules_to_save": ["embed_tokens"]}),
    "trainable tokens": (
        llama,
        {"trainable_token_indices": {"embed_tokens": [1, 4], "lm_head": [2]}},
    ),
    "tied trainable tokens": (
        lambda: llama(tie=True),
        {"trainable_token_indices": [1]},
    ),
    "all biases": (llama, {"bias": "all"}),
    "biases beside factors": (llama, {"bias": "lora_only"}),
    "a classifier": (classifier, {"task_type": "SEQ_CLS"}),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "layers_to_transform": (llama, {"layers_to_transform": [1]}),
    "layer_replication": (llama, {"layer_replication": [[0, 2], [1, 2]]}),
    "an embedding saved whole and biases": (
        llama,
        {"target_modules": ["embed_tokens", "q_proj"], "bias": "all"},
    ),
    "eva": (llama, {"init_lora_weights": "eva", "eva_config": peft.EvaConfig()}),
    "orthogonal": (llama, {"init_lora_weights": "orthogonal", "r": 4}),
    "velora": (llama, {"velora_config": peft.tuners.lora.VeloraConfig(num_groups=2)}),
    "monteclora": (llama, {"monteclora_config": peft.MontecloraConfig(num_samples=2)}),
    # It trains A alone: B is of singular vectors of the base, unless it starts anew.
    "mica": (llama, {"init_lora_weights": "mica"}),
    "mica of an embedding": (
        llama,
        {"init_lora_weights": "mica", "target_modules": ["embed_tokens", "q_proj"]},
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def train(name, folder):
    """Return the base and PEFT's model, with all trained tensors random."""
    model, fields = CASES[name]
    base = model()
    targets = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    config = peft.LoraConfig(**{**targets, **fields})
    trained = peft.get_peft_model(copy.deepcopy(base), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, x in trained.named_parameters():
            if x.requires_grad:
                x.copy_(0.3 * torch.randn(x.shape, generator=generator))
    trained.save_pretrained(folder)
    return base, trained


def factors(model):
    """Return the LoRA modules of PEFT's model, and each one's delta of its weight."""
    return {
        name: x.get_delta_weight("default").detach()
        for name, x in lora_layers(model).items()
    }


def outputs(model):
    with torch.no_grad():
        return model(torch.tensor([[1, 4, 7, 10], [2, 3, 5, 9]])).logits.numpy()


@pytest.mark.parametrize("profile", ["ragged", "padded"])
@every_case
def test_a_child_that_keeps_all_is_its_parent(name, profile, tmp_path):
    base, trained = train(name, tmp_path / "parent")
    child = para.compress(para.load(tmp_path / "parent"), para.Gamma(1.0))

    para.save(child, tmp_path / "child", profile=profile)

    got = loaded(base, tmp_path / "child")
    np.testing.assert_allclose(outputs(got), outputs(trained), atol=2e-5)


@pytest.mark.parametrize("profile", ["ragged", "padded"])
@every_case
def test_without_the_other_tensors_it_is_the_base_and_the_updates(
    name, profile, tmp_path
):
    base, trained = train(name, tmp_path / "parent")
    parent = para.load(tmp_path / "parent", adapters_only=True)

    para.save(
        para.compress(parent, para.Gamma(1.0)), tmp_path / "child", profile=profile
    )

    got = loaded(base, tmp_path / "child")
    deltas = factors(trained)
    assert factors(got).keys() == deltas.keys()
    want = trained
    if name != "layer_replication":  # Its copies share their weights.
        want = copy.deepcopy(base)
        with torch.no_grad():
            for module, delta in deltas.items():
                want.get_submodule(module).weight += delta
    np.testing.assert_allclose(outputs(got), outputs(want), atol=2e-5)
    config = json.loads((tmp_path / "child" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert config["trainable_token_indices"] is None
    assert config["bias"] == "none"
