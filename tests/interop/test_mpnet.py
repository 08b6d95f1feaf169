"""Compare our MPNet's outputs with transformers, also with PEFT's adapters."""

import dataclasses
import os
import pathlib

import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from train.models import layers, mpnet
from train.models.bert import Tokens

CLASSES = 3
LAYERS = 3
# Longer than the last range of distances.
LONGEST = 150
TARGETS = r".*encoder\.layer\.[02]\..*(attn\.[qkvo]|dense)"

REAL = pathlib.Path(
    os.environ.get("PARA_WEIGHTS", "nowhere"),
    "sentence-transformers/all-mpnet-base-v2",
)


@pytest.fixture(scope="module")
def torch_model():
    config = transformers.MPNetConfig(
        vocab_size=23,
        hidden_size=12,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        intermediate_size=14,
        max_position_embeddings=LONGEST + 2,
        layer_norm_eps=1e-5,
        initializer_range=0.5,
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    model = transformers.MPNetForSequenceClassification(config).eval()
    for name, x in model.named_parameters():  # Zeros and ones would hide mistakes.
        if "LayerNorm" in name or name.endswith("bias"):
            torch.nn.init.normal_(x, mean=0.5, std=0.5)
    # Far apart, so that a wrong bucket is seen.
    torch.nn.init.normal_(model.mpnet.encoder.relative_attention_bias.weight, std=2)
    return model


@pytest.fixture(scope="module")
def folder(torch_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("mpnet")
    torch_model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def config(folder):
    return mpnet.read_config(folder)


@pytest.fixture(scope="module")
def params(folder, config):
    return {
        "mpnet": mpnet.load(folder, config),
        "classifier": mpnet.load_classifier(folder, config, CLASSES),
    }


def sentences(lengths, vocabulary):
    """Return sentences of some lengths, filled up with the padding token, 1."""
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.random.default_rng(0).integers(3, vocabulary, mask.shape)
    return Tokens(np.where(mask, ids, 1).astype(np.int32), mask)


@pytest.fixture(scope="module")
def batch(config):
    return sentences([17, 1, 5, 12], config.vocab_size)


@pytest.fixture(scope="module")
def peft_folder(torch_model, tmp_path_factory):
    """Save a rank-4 adapter on all linear layers of two of the three blocks."""
    path = tmp_path_factory.mktemp("adapter")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=TARGETS,
        rank_pattern={"mpnet.encoder.layer.2.attention.attn.q": 2},
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
    model = mpnet.MPNetClassifier(config, CLASSES, **fields)
    return np.asarray(model.apply({"params": params, "lora": lora}, batch))


@pytest.mark.parametrize("lengths", [[17, 1, 5, 12], [LONGEST, 90]])
def test_the_logits_are_those_of_transformers(torch_model, config, params, lengths):
    batch = sentences(lengths, config.vocab_size)

    got = flax_logits(config, params, batch)

    want = torch_logits(torch_model, batch)
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_every_distance_has_the_bias_of_transformers(torch_model, config, params):
    import jax.numpy as jnp

    theirs = torch_model.mpnet.encoder
    with torch.no_grad():
        want = theirs.compute_position_bias(torch.zeros(1, 700, 12))[0].numpy()
    table = params["mpnet"]["encoder"]["relative_attention_bias"]["embedding"]

    got = jnp.asarray(table)[mpnet.buckets(700)]

    np.testing.assert_array_equal(np.moveaxis(got, -1, 0), want)


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
        adapters = layers.stacked(adapters, LAYERS, path=mpnet.STACK)
        assert adapters.keys() == {f"{mpnet.STACK}/{x}" for x in mpnet.ADAPTED}

    got = flax_logits(config, params, batch, adapters)

    model = peft.PeftModel.from_pretrained(_copy(torch_model), peft_folder).eval()
    want = torch_logits(model, batch)
    assert np.abs(want - torch_logits(torch_model, batch)).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_a_ragged_child_of_a_stack_is_what_peft_computes(
    torch_model, config, params, batch, peft_folder, tmp_path
):
    source = para.load(peft_folder)
    stacks = layers.stacked(source.adapters, LAYERS, path=mpnet.STACK)
    child = para.compress(stacks, para.Gamma(0.25))
    own = layers.unstacked(child.adapters, path=mpnet.STACK)
    assert len({x.rank for x in own.values()}) > 1

    got = flax_logits(config, params, batch, own)

    para.save(para.Checkpoint(adapters=own), tmp_path / "child", format="peft")
    model = peft.PeftModel.from_pretrained(_copy(torch_model), tmp_path / "child")
    want = torch_logits(model.eval(), batch)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["MPNetModel", "MPNetForMaskedLM"])
def test_the_encoder_is_found_under_any_head(folder, config, params, tmp_path, kind):
    model = getattr(transformers, kind).from_pretrained(folder)
    model.save_pretrained(tmp_path)

    got = mpnet.load(tmp_path, config)

    flat = para.unnest(params["mpnet"])
    assert para.unnest(got).keys() == flat.keys()
    for path, x in para.unnest(got).items():
        np.testing.assert_array_equal(x, flat[path], err_msg=path)


def test_a_head_of_other_classes_is_misshapen(folder, config):
    message = r"classifier.out_proj.weight is \(3, 12\), which becomes \(12, 3\), exp"
    with pytest.raises(ValueError, match=message):
        mpnet.load_classifier(folder, config, CLASSES + 1)


def test_the_fields_of_the_configuration_are_those_of_transformers(torch_model, config):
    for field in dataclasses.fields(config):
        assert getattr(config, field.name) == getattr(torch_model.config, field.name)


@pytest.mark.skipif(
    not REAL.is_dir(), reason=f"{REAL} is not there: set PARA_WEIGHTS to its models"
)
def test_the_real_encoder_is_that_of_transformers():
    from train.data import tokens

    pairs = [("A short one.", "And what follows."), ("Nothing but", "a few words: é!")]
    theirs = transformers.AutoTokenizer.from_pretrained(REAL)
    ids = tokens.encode(tokens.load_tokenizer(REAL), pairs)
    assert ids == [theirs(*pair)["input_ids"] for pair in pairs]
    (found,) = tokens.batches(ids, [0, 1], widths=(32,))
    config = mpnet.read_config(REAL)

    params = {"params": mpnet.load(REAL, config)}
    got = np.asarray(mpnet.MPNet(config).apply(params, found.inputs))

    model = transformers.MPNetModel.from_pretrained(REAL).eval()
    ids, mask = (torch.tensor(np.asarray(x, np.int64)) for x in found.inputs)
    # transformers counts positions by the padding token, not by the mask.
    ids = torch.where(mask > 0, ids, config.pad_token_id)
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    there = np.asarray(found.inputs.mask)
    np.testing.assert_allclose(got[there], want[there], rtol=0, atol=1e-4)
