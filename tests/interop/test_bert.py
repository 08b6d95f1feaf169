"""Compare our BERT's outputs with transformers and PEFT, for every adapter."""

import copy

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from peft import PeftModel

import para_jax as para
from para_jax.flax import linen
from train.commands import demo
from train.data import sentiment, tokens
from train.models import bert, pretrained
from train.subjects import tasks

SENTENCES = 15
POLICIES = {policy.name: policy for policy in demo.POLICIES}


@pytest.fixture(scope="module")
def folder():
    return pretrained.find_folder()


@pytest.fixture(scope="module")
def texts():
    """Return texts of all lengths: some are padded, some truncated."""
    ordered = sorted(sentiment.load("movie", "test").texts, key=len)
    return [*ordered[:: len(ordered) // SENTENCES], ordered[-1] * 2]


@pytest.fixture(scope="module")
def encoded(folder, texts):
    """Return PyTorch tensors from the transformers tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(
        texts, padding=True, truncation=True, max_length=64, return_tensors="pt"
    )


@pytest.fixture(scope="module")
def torch_base(folder):
    config = transformers.BertConfig.from_pretrained(folder, num_labels=3)
    model = transformers.BertForSequenceClassification(config)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights.pop("embeddings.position_ids")
    model.bert.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def encoder(folder):
    return pretrained.load(folder, bert.read_config(folder))


@pytest.fixture(scope="module")
def family():
    parent = para.load(tasks.MOVIE)
    children = para.family(parent, list(POLICIES.values()))
    return dict(zip(POLICIES, children, strict=True))


def torch_logits(base, adapter, encoded):
    model = PeftModel.from_pretrained(copy.deepcopy(base), str(adapter)).eval()
    with torch.no_grad():
        return model(**encoded).logits.numpy()


def flax_logits(folder, encoder, adapter, encoded):
    model = bert.BertClassifier(bert.read_config(folder), 3)
    params = {"bert": encoder, "classifier": pretrained.classifier(adapter.extra)}
    lora = para.to_params(adapter.adapters)
    linen.check(lora, params)
    ids, mask = (encoded[x].numpy() for x in ("input_ids", "attention_mask"))
    batch = bert.Tokens(ids.astype(np.int32), mask.astype(bool))
    return model.apply({"params": params, "lora": lora}, batch)


def test_the_tokenizer_equals_that_of_transformers(folder, texts, encoded):
    got = tokens.encode(tokens.load_tokenizer(folder), texts)

    rows = zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    assert got == [ids[mask.bool()].tolist() for ids, mask in rows]
    assert max(map(len, got)) == tokens.MAX_LENGTH


def test_the_logits_of_the_parent_are_those_of_peft(
    folder, encoder, torch_base, encoded
):
    got = flax_logits(folder, encoder, para.load(tasks.MOVIE), encoded)

    want = torch_logits(torch_base, tasks.MOVIE, encoded)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.slow
def test_the_logits_of_a_saved_child_are_those_of_peft(
    folder, encoder, torch_base, encoded, family, name, tmp_path
):
    para.save(family[name], tmp_path / "child", format="peft")

    got = flax_logits(folder, encoder, family[name], encoded)

    want = torch_logits(torch_base, tmp_path / "child", encoded)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
