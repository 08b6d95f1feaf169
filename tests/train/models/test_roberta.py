import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax as para
from para_jax._adapters.params import nest, unnest
from train.models import layers, roberta
from train.models.bert import Tokens

LAYERS = 3
CONFIG = roberta.Config(
    vocab_size=17,
    hidden_size=6,
    num_hidden_layers=LAYERS,
    num_attention_heads=2,
    intermediate_size=10,
    max_position_embeddings=9,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
    pad_token_id=1,
)
FILE = {**CONFIG.__dict__, "model_type": "roberta", "hidden_act": "gelu"}


@pytest.fixture
def batch():
    mask = np.arange(7) < np.array([[7], [3]])
    return Tokens(np.where(mask, 5 + np.arange(7), 1).astype(np.int32), mask)


@pytest.fixture
def params(batch):
    model = roberta.RobertaClassifier(CONFIG, 4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: generator.normal(size=x.shape).astype(np.float32) / 2, shapes
    )


@pytest.fixture
def ragged():
    """Adapters of ranks 1 to 3; layer 1 has none, and each kernel lacks one."""
    generator = np.random.default_rng(1)
    result = {}
    for place, name in enumerate(roberta.ADAPTED):
        m = 10 if name == "output/dense" else 6
        n = 10 if name == "intermediate/dense" else 6
        for layer in (0, 2):
            r = 1 + (place + layer) % 3
            a, b = generator.normal(size=(m, r)), generator.normal(size=(r, n))
            adapter = para.Adapter(a.astype(np.float32), b.astype(np.float32))
            result[f"{roberta.STACK}/{layer}/{name}"] = adapter
    del result[f"{roberta.STACK}/0/output/dense"]
    return result


def logits(params, batch, adapters=None, **fields):
    lora = para.to_params(adapters or {})
    layers.check(lora, params)
    model = roberta.RobertaClassifier(CONFIG, 4, **fields)
    return model.apply({"params": params, "lora": lora}, batch)


def test_the_paths_are_those_of_transformers_with_one_stack(params):
    shapes = {path: x.shape for path, x in unnest(params).items()}

    d, m, L = 6, 10, LAYERS
    linear = {
        "attention/self/query": (d, d),
        "attention/self/key": (d, d),
        "attention/self/value": (d, d),
        "attention/output/dense": (d, d),
        "intermediate/dense": (d, m),
        "output/dense": (m, d),
    }
    stack = {f"{name}/kernel": (L, *shape) for name, shape in linear.items()}
    stack |= {f"{name}/bias": (L, shape[1]) for name, shape in linear.items()}
    norms = ("attention/output", "output")
    stack |= {f"{x}/LayerNorm/{y}": (L, d) for x in norms for y in ("scale", "bias")}
    want = {f"roberta/encoder/layer/{name}": shape for name, shape in stack.items()}
    want |= {
        "roberta/embeddings/word_embeddings/embedding": (17, d),
        "roberta/embeddings/position_embeddings/embedding": (9, d),
        "roberta/embeddings/token_type_embeddings/embedding": (1, d),
        "roberta/embeddings/LayerNorm/scale": (d,),
        "roberta/embeddings/LayerNorm/bias": (d,),
        "classifier/dense/kernel": (d, d),
        "classifier/dense/bias": (d,),
        "classifier/out_proj/kernel": (d, 4),
        "classifier/out_proj/bias": (4,),
    }
    assert shapes == want
    assert {f"{roberta.STACK}/{x}/kernel" for x in roberta.ADAPTED} <= want.keys()


def test_ragged_adapters_layer_by_layer_equal_padded_ones_in_a_scan(
    params, batch, ragged
):
    padded = layers.stacked(ragged, LAYERS, path=roberta.STACK)

    got = logits(params, batch, ragged)

    np.testing.assert_allclose(logits(params, batch, padded), got, rtol=0, atol=1e-4)
    assert np.abs(got - logits(params, batch)).max() > 0.1


def test_adapters_compute_what_merged_kernels_do(params, batch, ragged):
    kernels = {path: np.array(x) for path, x in unnest(params).items()}
    for path, x in ragged.items():
        layer, _, name = path.removeprefix(f"{roberta.STACK}/").partition("/")
        kernels[f"{roberta.STACK}/{name}/kernel"][int(layer)] += x.a @ x.b

    want = logits(nest(kernels), batch)

    np.testing.assert_allclose(logits(params, batch, ragged), want, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient(params, batch, ragged):
    padded = layers.stacked(ragged, LAYERS, path=roberta.STACK)

    def gradient(**fields):
        def loss(adapters):
            return jnp.sum(logits(params, batch, adapters, **fields) ** 2)

        return unnest(para.to_params(jax.jit(jax.grad(loss))(padded)))

    want = gradient()
    for path, x in gradient(remat="full").items():
        np.testing.assert_allclose(x, want[path], rtol=1e-4, atol=1e-4)


def test_padding_on_either_side_changes_no_token(params):
    ids = np.array([[5, 6, 7, 1, 1], [1, 1, 5, 6, 7]], np.int32)
    encoder, variables = roberta.Roberta(CONFIG), {"params": params["roberta"]}

    got = encoder.apply(variables, Tokens(ids, ids != 1))

    want = encoder.apply(variables, Tokens(ids[:1, :3], np.ones((1, 3), bool)))[0]
    np.testing.assert_allclose(got[0, :3], want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got[1, 2:], want, rtol=0, atol=1e-5)


def test_a_batch_that_is_too_wide_is_refused(params):
    ids = np.full((1, 8), 5, np.int32)

    with pytest.raises(ValueError, match="8 tokens wide, expected at most 7"):
        logits(params, Tokens(ids, ids > 0))


def test_bfloat16_params_give_logits_near_those_of_float32(params, batch, ragged):
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)

    got = logits(narrow, batch, ragged)

    want = logits(params, batch, ragged)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=0.1, atol=0.1)


def test_the_configuration_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**FILE, "other": 1}))

    assert roberta.read_config(tmp_path) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', expected 'roberta'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'gelu'"),
        ({"is_decoder": True}, "is_decoder is True, expected False"),
    ],
)
def test_the_configuration_of_another_form_is_refused(tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps({**FILE, **change}))

    with pytest.raises(ValueError, match=message):
        roberta.read_config(tmp_path)


def test_a_configuration_without_a_value_says_which(tmp_path):
    values = {k: v for k, v in FILE.items() if k != "vocab_size"}
    (tmp_path / "config.json").write_text(json.dumps(values))

    with pytest.raises(ValueError, match=r"has no values for \['vocab_size'\]"):
        roberta.read_config(tmp_path)


def test_a_folder_without_a_configuration_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json' is missing"):
        roberta.read_config(tmp_path)
