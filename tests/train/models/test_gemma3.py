"""Gemma 3 beyond its logits; tests/interop compares these with transformers."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="module")
def gemma3():
    from train.models import gemma3

    return gemma3


@pytest.fixture(scope="module")
def tiny():
    from tests.train.models import tiny_gemma3

    return tiny_gemma3


@pytest.fixture(scope="module")
def gradient(gemma3, tiny):
    """The loss and its gradient by the adapters, of a model with these attributes."""
    from train.models import loss

    mask = np.arange(11)[None] >= np.array([4, 7])[:, None]

    @functools.cache
    def compute(**attributes):
        model = gemma3.Gemma3(tiny.CONFIG, **attributes)
        dtype = attributes.get("dtype", jnp.float32)
        params = jax.tree.map(lambda x: x.astype(dtype), tiny.params())

        @jax.jit
        @jax.value_and_grad
        def of(lora):
            variables = {"params": params, "lora": lora}
            return loss.causal_loss(model, variables, tiny.IDS, mask, chunk=7)

        return of(tiny.lora())

    return compute


@pytest.mark.slow
def test_recomputing_all_but_what_is_named_changes_no_gradient(gradient):
    want, got = gradient(), gradient(remat="named")

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6), got, want
    )
    assert all(jnp.abs(x).max() > 1e-4 for x in jax.tree.leaves(want[1]))


@pytest.mark.slow
def test_bfloat16_is_near_float32_and_adapters_keep_their_dtype(gradient):
    (want, wide), (got, narrow) = (
        gradient(),
        gradient(dtype=jnp.bfloat16, remat="named"),
    )

    np.testing.assert_allclose(got, want, rtol=0.02)
    for x, y in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert x.dtype == jnp.float32
        assert np.linalg.norm(x - y) < 0.1 * np.linalg.norm(y)


def test_init_gives_the_params_that_checkpoints_have(gemma3, tiny):
    from para_jax._adapters.params import unnest

    model = gemma3.Gemma3(tiny.CONFIG)

    got = jax.eval_shape(model.init, jax.random.key(0), tiny.IDS)

    found = {path: x.shape for path, x in unnest(got["params"]).items()}
    assert found == {k: x.shape for k, x in gemma3.leaves(tiny.CONFIG).items()}


def test_the_true_shapes_of_4b_have_its_number_of_params(gemma3):
    sizes = [np.prod(x.shape) for x in gemma3.leaves(gemma3.GEMMA3_4B).values()]

    assert sum(sizes) == 3_880_263_168


@pytest.mark.parametrize("tokens", [3, 11])
def test_flash_attention_is_asked_for_what_the_mask_says(
    gemma3, tiny, monkeypatch, tokens
):
    """Without a GPU: XLA computes cuDNN's arguments."""
    from train.models import gemma3 as module

    plain, asked = jax.nn.dot_product_attention, []

    def on_xla(*args, implementation=None, **kwargs):
        asked.append(implementation)
        return plain(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)
    variables = {"params": tiny.params(), "lora": tiny.lora()}
    ids = tiny.IDS[:, :tokens]

    got, want = (
        module.Gemma3(tiny.CONFIG, implementation=x).apply(variables, ids)
        for x in ("cudnn", "xla")
    )

    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert set(asked) == {"cudnn", None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, "model_type is 'gemma2', expected 'gemma3_text'"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu', expected"),
        ({"attention_bias": True}, "attention_bias is True, expected False"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "expected rope_type 'default'"),
    ],
)
def test_a_model_of_another_form_is_refused(gemma3, tmp_path, change, message):
    values = {"model_type": "gemma3_text", "num_hidden_layers": 7, **change}
    (tmp_path / "config.json").write_text(json.dumps(values))

    with pytest.raises(ValueError, match=message):
        gemma3.read_config(tmp_path)


def test_the_older_names_of_a_configuration_are_read(gemma3, tmp_path):
    values = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "sliding_window_pattern": 3,
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"type": "linear", "factor": 4},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))

    got = gemma3.read_config(tmp_path)

    want = gemma3.Config(
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=7,
        sliding_window=4096,
        global_layers=(2, 5),
        rope_theta=5e5,
        rope_factor=4,
        rope_local_base_freq=2e4,
    )
    assert dataclasses.asdict(got) == dataclasses.asdict(want)
