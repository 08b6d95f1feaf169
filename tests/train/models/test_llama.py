"""Llama beyond its logits; tests/interop compares these with transformers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy


@pytest.fixture(scope="module")
def llama():
    from train.models import llama

    return llama


@pytest.fixture(scope="module")
def tiny():
    from tests.train.models import tiny_llama

    return tiny_llama


@pytest.mark.parametrize("tied", [False, True])
def test_init_gives_the_params_that_checkpoints_have(llama, tiny, tied):
    from para_jax import unnest

    config = tiny.TIED if tied else tiny.CONFIG

    got = jax.eval_shape(llama.Llama(config).init, jax.random.key(0), tiny.IDS)

    found = {path: x.shape for path, x in unnest(got["params"]).items()}
    assert found == {k: x.shape for k, x in llama.leaves(config).items()}
    assert ("lm_head/kernel" in found) is not tied


def test_norms_begin_with_weights_of_one(llama, tiny):
    got = llama.Llama(tiny.TIED).init(jax.random.key(0), tiny.IDS[:, :2])

    np.testing.assert_array_equal(got["params"]["model"]["norm"]["scale"], np.ones(24))


def test_the_true_shapes_of_smollm2_have_its_number_of_params(llama):
    config = llama.Config(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        tie_word_embeddings=True,
    )

    sizes = [np.prod(x.shape) for x in llama.leaves(config).values()]

    assert sum(sizes) == 134_515_008


@pytest.mark.parametrize("tied", [False, True])
def test_the_score_is_that_of_all_logits(llama, tiny, monkeypatch, tied):
    from train.data.batch import NO_LABEL, Batch
    from train.models import loss

    monkeypatch.setattr(loss, "CHUNK", 4)
    config = tiny.TIED if tied else tiny.CONFIG
    model, variables = llama.Llama(config), {"params": tiny.params(config)}
    labels = np.roll(tiny.IDS, -1, axis=1)
    labels[:, -1], labels[0, :3] = NO_LABEL, NO_LABEL

    got = model.score(variables, Batch(tiny.IDS, labels))

    logits = np.float64(model.apply(variables, tiny.IDS))
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    counts = labels != NO_LABEL
    own = np.take_along_axis(logs, np.where(counts, labels, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(got.loss, -own[counts].mean(), rtol=1e-5)
    right = (logits.argmax(axis=-1) == labels)[counts].mean()
    np.testing.assert_allclose(got.accuracy, right, rtol=1e-6)


def test_a_batch_of_padding_alone_has_a_loss_of_0(llama, tiny):
    from train.data.batch import NO_LABEL, Batch

    variables = {"params": tiny.params()}
    labels = np.full_like(tiny.IDS, NO_LABEL)

    got = llama.Llama(tiny.CONFIG).score(variables, Batch(tiny.IDS, labels))

    assert tuple(map(float, got)) == (0, 0)


def test_bfloat16_is_near_float32(llama, tiny):
    params = tiny.params()
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)

    want = llama.Llama(tiny.CONFIG).apply({"params": params}, tiny.IDS)
    model = llama.Llama(tiny.CONFIG, dtype=jnp.bfloat16)
    got = model.apply({"params": narrow}, tiny.IDS)

    assert got.dtype == jnp.float32
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', expected 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"attention_bias": True}, "attention_bias is True, expected False"),
        ({"mlp_bias": True}, "mlp_bias is True, expected False"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "expected rope_type"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "'llama3' with its"),
    ],
)
def test_a_model_of_another_form_is_refused(llama, tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | change))

    with pytest.raises(ValueError, match=message):
        llama.read_config(tmp_path)


def test_the_older_names_of_a_configuration_are_read(llama, tmp_path):
    # As Llama 1 and 2 have it: without `num_key_value_heads` and `head_dim`.
    values = {
        "model_type": "llama",
        "hidden_size": 96,
        "num_attention_heads": 8,
        "num_key_value_heads": None,
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 4},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))

    got = llama.read_config(tmp_path)

    want = llama.Config(
        hidden_size=96,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=12,
        rope_theta=5e5,
        rope_factor=4.0,
    )
    assert dataclasses.asdict(got) == dataclasses.asdict(want)


def test_buffers_and_the_copy_of_a_tied_head_are_left_out(llama, tiny, tmp_path):
    found = {
        name: np.zeros(x.part if len(x.part) < 2 or not x.stacked else x.part[::-1])
        for x in llama.leaves(tiny.TIED).values()
        for name in x.names
    }
    found["lm_head.weight"] = found["model.embed_tokens.weight"] + 1
    found["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2)
    safetensors.numpy.save_file(found, tmp_path / "model.safetensors")

    got = llama.load(tmp_path, tiny.TIED)

    assert set(got) == {"model"}
