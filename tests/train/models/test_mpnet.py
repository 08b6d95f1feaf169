"""MPNet's params, their paths, and what its configuration may be."""

import json

import jax
import numpy as np
import pytest

import para_jax as para
from para_jax import unnest
from train.models import layers, mpnet
from train.models.bert import Tokens

LAYERS = 3
CONFIG = mpnet.Config(
    vocab_size=17,
    hidden_size=6,
    num_hidden_layers=LAYERS,
    num_attention_heads=2,
    intermediate_size=10,
    max_position_embeddings=9,
    layer_norm_eps=1e-5,
    pad_token_id=1,
)
FILE = {**CONFIG.__dict__, "model_type": "mpnet", "relative_attention_num_buckets": 32}


@pytest.fixture
def params():
    ids = np.full((1, 2), 5, np.int32)
    model = mpnet.MPNetClassifier(CONFIG, 4)
    batch = Tokens(ids, ids > 0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: generator.normal(size=x.shape).astype(np.float32) / 2, shapes
    )


def test_the_paths_are_those_of_transformers_with_one_stack(params):
    shapes = {path: x.shape for path, x in unnest(params).items()}

    d, m, L = 6, 10, LAYERS
    linear = {f"attention/attn/{x}": (d, d) for x in "qkvo"}
    linear |= {"intermediate/dense": (d, m), "output/dense": (m, d)}
    stack = {f"{name}/kernel": (L, *shape) for name, shape in linear.items()}
    stack |= {f"{name}/bias": (L, shape[1]) for name, shape in linear.items()}
    norms = ("attention", "output")
    stack |= {f"{x}/LayerNorm/{y}": (L, d) for x in norms for y in ("scale", "bias")}
    want = {f"mpnet/encoder/layer/{name}": shape for name, shape in stack.items()}
    want |= {
        "mpnet/encoder/relative_attention_bias/embedding": (32, 2),
        "mpnet/embeddings/word_embeddings/embedding": (17, d),
        "mpnet/embeddings/position_embeddings/embedding": (9, d),
        "mpnet/embeddings/LayerNorm/scale": (d,),
        "mpnet/embeddings/LayerNorm/bias": (d,),
        "classifier/dense/kernel": (d, d),
        "classifier/dense/bias": (d,),
        "classifier/out_proj/kernel": (d, 4),
        "classifier/out_proj/bias": (4,),
    }
    assert shapes == want
    model = mpnet.MPNetClassifier(CONFIG, 4)
    assert model.adapted.kernels(params).keys() == {
        f"mpnet/encoder/layer/{i}/{name}" for i in range(L) for name in linear
    }


def test_ranges_of_distance_are_those_of_t5():
    # By logarithms, as in the T5 paper's code: 8 + 8 log(n / 8) / log(128 / 8).
    distance = np.arange(1000)
    # The nudge brings exact steps, 8, 16, 32 and 64, to their own side.
    wide = 8 + np.floor(8 * np.log(np.maximum(distance, 1) / 8) / np.log(16) + 1e-9)
    want = np.where(distance < 8, distance, np.minimum(wide, 15))

    got = mpnet.buckets(1000)

    np.testing.assert_array_equal(got[:, 0], want)
    np.testing.assert_array_equal(got[0, 1:], 16 + want[1:])
    # The same at every place: only the distance counts.
    np.testing.assert_array_equal(got[1:, 1:], got[:-1, :-1])


def test_padding_on_either_side_changes_no_token(params):
    ids = np.array([[5, 6, 7, 1, 1], [1, 1, 5, 6, 7]], np.int32)
    encoder, variables = mpnet.MPNet(CONFIG), {"params": params["mpnet"]}

    got = encoder.apply(variables, Tokens(ids, ids != 1))

    want = encoder.apply(variables, Tokens(ids[:1, :3], np.ones((1, 3), bool)))[0]
    np.testing.assert_allclose(got[0, :3], want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got[1, 2:], want, rtol=0, atol=1e-5)


def test_every_layer_of_its_own_computes_what_the_scan_does(params):
    generator = np.random.default_rng(1)
    ragged = {
        f"{mpnet.STACK}/{layer}/attention/attn/{name}": para.Adapter(
            generator.normal(size=(6, 1 + layer)).astype(np.float32),
            generator.normal(size=(1 + layer, 6)).astype(np.float32),
        )
        for layer, name in ((0, "q"), (2, "o"), (2, "k"))
    }
    ids = np.array([[5, 6, 7, 8, 9]], np.int32)

    def logits(adapters):
        lora = para.to_params(adapters)
        layers.check(lora, params)
        variables = {"params": params, "lora": lora}
        return mpnet.MPNetClassifier(CONFIG, 4).apply(variables, Tokens(ids, ids > 0))

    got = logits(ragged)

    padded = layers.stacked(ragged, LAYERS, path=mpnet.STACK)
    np.testing.assert_allclose(logits(padded), got, rtol=0, atol=1e-4)
    assert np.abs(got - logits({})).max() > 0.05


def test_a_batch_that_is_too_wide_is_refused(params):
    ids = np.full((1, 8), 5, np.int32)

    with pytest.raises(ValueError, match="8 tokens wide, expected at most 7"):
        mpnet.MPNet(CONFIG).apply({"params": params["mpnet"]}, Tokens(ids, ids > 0))


def test_the_configuration_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**FILE, "other": 1}))

    assert mpnet.read_config(tmp_path) == CONFIG
    assert CONFIG.longest == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', expected 'mpnet'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'gelu'"),
        ({"relative_attention_num_buckets": 16}, "num_buckets is 16, expected 32"),
        ({"pad_token_id": 0}, "pad_token_id is 0, expected 1"),
    ],
)
def test_the_configuration_of_another_form_is_refused(tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps({**FILE, **change}))

    with pytest.raises(ValueError, match=message):
        mpnet.read_config(tmp_path)
