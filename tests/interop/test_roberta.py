"""Compare our RoBERTa's outputs with transformers, also with PEFT's adapters."""

import dataclasses

import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from train.models import layers, roberta
from train.models.bert import Tokens

CLASSES = 3
LAYERS = 3
TARGETS = ["query", "key", "value", "dense"]


@pytest.fixture(scope="module")
def torch_model():
    config = transformers.RobertaConfig(
        vocab_size=23,
        hidden_size=12,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        intermediate_size=14,
        max_position_embeddings=19,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.5,
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    model = transformers.RobertaForSequenceClassification(config).eval()
    for name, x in model.named_parameters():  # Zeros and ones would hide mistakes.
        if "LayerNorm" in name or name.endswith("bias"):
            torch.nn.init.normal_(x, mean=0.5, std=0.5)
    return model


@pytest.fixture(scope="module")
def folder(torch_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("roberta")
    torch_model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def config(folder):
    return roberta.read_config(folder)


@pytest.fixture(scope="module")
def params(folder, config):
    return {
        "roberta": roberta.load(folder, config),
        "classifier": roberta.load_classifier(folder, config, CLASSES),
    }


@pytest.fixture(scope="module")
def batch(config):
    """Return sentences of 1 to 17 tokens, filled up with the padding token."""
    lengths = np.array([[17], [1], [5], [12]])
    mask = np.arange(17) < lengths
    ids = np.random.default_rng(0).integers(3, config.vocab_size, mask.shape)
    return Tokens(np.where(mask, ids, config.pad_token_id).astype(np.int32), mask)


@pytest.fixture(scope="module")
def peft_folder(torch_model, tmp_path_factory):
    """Save a rank-2 adapter on all linear layers of two of the three blocks."""
    path = tmp_path_factory.mktemp("adapter")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=r".*encoder\.layer\.[02]\..*(query|key|value|dense)",
        rank_pattern={"roberta.encoder.layer.2.attention.self.query": 2},
    )
    torch.manual_seed(1)
    model = peft.get_peft_model(_copy(torch_model), config)
    for name, x in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(x, std=0.5)
    model.save_pretrained(path)
    return path


def _copy(model):
    twin = type(model)(model.config)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def torch_logits(model, batch):
    ids, mask = (torch.tensor(np.asarray(x, np.int64)) for x in batch)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits.numpy()


def flax_logits(config, params, batch, adapters=None, **fields):
    lora = para.to_params(adapters or {})
    layers.check(lora, params)
    model = roberta.RobertaClassifier(config, CLASSES, **fields)
    return np.asarray(model.apply({"params": params, "lora": lora}, batch))


def test_the_logits_are_those_of_transformers(torch_model, config, params, batch):
    got = flax_logits(config, params, batch)

    want = torch_logits(torch_model, batch)
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_what_fills_up_a_sentence_changes_no_logits(config, params, batch):
    zeros = Tokens(np.where(batch.mask, batch.ids, 0).astype(np.int32), batch.mask)

    got = flax_logits(config, params, zeros)

    want = flax_logits(config, params, batch)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["ragged", "stacked"])
def test_the_logits_with_an_adapter_are_those_of_peft(
    torch_model, config, params, batch, peft_folder, form
):
    adapters = dict(para.load(peft_folder).adapters)
    if form == "stacked":
        adapters = layers.stacked(adapters, LAYERS, path=roberta.STACK)
        assert adapters.keys() == {f"{roberta.STACK}/{x}" for x in roberta.ADAPTED}

    got = flax_logits(config, params, batch, adapters)

    model = peft.PeftModel.from_pretrained(_copy(torch_model), peft_folder).eval()
    want = torch_logits(model, batch)
    assert np.abs(want - torch_logits(torch_model, batch)).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_a_ragged_child_of_a_stack_is_what_peft_computes(
    torch_model, config, params, batch, peft_folder, tmp_path
):
    source = para.load(peft_folder)
    stacks = layers.stacked(source.adapters, LAYERS, path=roberta.STACK)
    child = para.compress(stacks, para.Gamma(0.25))
    own = layers.unstacked(child.adapters, path=roberta.STACK)
    assert len({x.rank for x in own.values()}) > 1

    got = flax_logits(config, params, batch, own)

    padded = layers.stacked(own, LAYERS, path=roberta.STACK)
    scanned = flax_logits(config, params, batch, padded)
    np.testing.assert_allclose(scanned, got, rtol=0, atol=1e-5)
    para.save(para.Checkpoint(adapters=own), tmp_path / "child", format="peft")
    model = peft.PeftModel.from_pretrained(_copy(torch_model), tmp_path / "child")
    want = torch_logits(model.eval(), batch)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_shards_of_a_bfloat16_model_are_loaded_as_they_are(
    torch_model, config, tmp_path
):
    narrow = _copy(torch_model).to(torch.bfloat16)
    narrow.save_pretrained(tmp_path, max_shard_size="3KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    params = roberta.load(tmp_path, config)

    got = params["encoder"]["layer"]["intermediate"]["dense"]["kernel"]

    blocks = narrow.roberta.encoder.layer
    want = torch.stack([x.intermediate.dense.weight.T for x in blocks])
    assert got.dtype == "bfloat16"
    np.testing.assert_array_equal(got.astype(np.float32), want.float().detach())


@pytest.mark.parametrize("kind", ["RobertaModel", "RobertaForMaskedLM"])
def test_the_encoder_is_found_under_any_head(folder, config, params, tmp_path, kind):
    model = getattr(transformers, kind).from_pretrained(folder)
    model.save_pretrained(tmp_path)

    got = roberta.load(tmp_path, config)

    flat = para.unnest(params["roberta"])
    for path, x in para.unnest(got).items():
        np.testing.assert_array_equal(x, flat[path], err_msg=path)


def test_a_head_of_other_classes_is_misshapen(folder, config):
    message = r"classifier.out_proj.weight is \(3, 12\), which becomes \(12, 3\), exp"
    with pytest.raises(ValueError, match=message):
        roberta.load_classifier(folder, config, CLASSES + 1)


def test_the_fields_of_the_configuration_are_those_of_transformers(torch_model, config):
    for field in dataclasses.fields(config):
        assert getattr(config, field.name) == getattr(torch_model.config, field.name)
