"""Blocks with stacked params, against a loop over NumPy's matrices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

import para_jax as para

L, M, N = 3, 4, 6
RANKS = (2, 0, 3)  # Of the layers' adapters of `up`; `down` is adapted nowhere.


@pytest.fixture
def layers() -> Any:
    from train.models import layers

    return layers


@pytest.fixture
def model(layers):
    from para_jax.flax.linen import Dense

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, factor, shift):
            y = jnp.tanh(Dense(N, name="up")(x)) * factor
            return checkpoint_name(x + Dense(M, name="down")(y) + shift, layers.SAVED)

    class Model(nn.Module):
        remat: str = "none"

        @nn.compact
        def __call__(self, x):
            factors = jnp.arange(1, L + 1, dtype=jnp.float32)
            blocks = layers.Layers(Block, L, self.remat, name="layers")
            return blocks(x, factors, jnp.float32(0.5))

    return Model


@pytest.fixture
def params(model):
    """Drawn by NumPy, in the shapes of the model."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model().init, jax.random.key(0), jnp.ones((1, M)))
    draw = functools.partial(generator.normal, scale=0.5)
    return jax.tree.map(
        lambda x: jnp.asarray(draw(size=x.shape), x.dtype), shapes["params"]
    )


@pytest.fixture
def ragged():
    """Each layer has its own rank, one has no adapter."""
    generator = np.random.default_rng(1)
    return {
        f"layers/{i}/up": para.Adapter(
            a=generator.normal(size=(M, r)).astype(np.float32),
            b=generator.normal(size=(r, N)).astype(np.float32),
            scale=0.5,
        )
        for i, r in enumerate(RANKS)
        if r
    }


X = np.linspace(-1, 1, 5 * M, dtype=np.float32).reshape(5, M)


def looped(params, adapters):
    """The model in float64, with the updates added to the kernels."""
    x = X.astype(np.float64)
    up, down = (params["layers"][name] for name in ("up", "down"))
    for i in range(L):
        kernel = np.asarray(up["kernel"][i], np.float64)
        if adapter := adapters.get(f"layers/{i}/up"):
            kernel = kernel + adapter.scale * adapter.a.astype(np.float64) @ adapter.b
        y = np.tanh(x @ kernel + np.asarray(up["bias"][i])[None]) * (i + 1)
        y = y @ np.asarray(down["kernel"][i], np.float64)
        x = x + y + np.asarray(down["bias"][i])[None] + 0.5
    return x


def test_params_are_stacked_under_the_paths_of_one_block(params):
    assert jax.tree.map(jnp.shape, params) == {
        "layers": {
            "up": {"kernel": (L, M, N), "bias": (L, N)},
            "down": {"kernel": (L, N, M), "bias": (L, M)},
        }
    }


@pytest.mark.parametrize("form", ["none", "ragged", "stacked"])
def test_every_form_of_adapter_equals_a_loop(layers, model, params, ragged, form):
    adapters = {} if form == "none" else ragged
    given = adapters
    if form == "stacked":
        given = layers.stacked(ragged, L, path="layers")
        assert jax.tree.map(jnp.shape, para.to_params(given)) == {
            "layers": {"up": {"a": (L, M, 3), "b": (L, 3, N)}}
        }

    got = model().apply({"params": params, "lora": para.to_params(given)}, X)

    np.testing.assert_allclose(got, looped(params, adapters), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["ragged", "stacked"])
@pytest.mark.parametrize("remat", ["full", "dots", "named"])
def test_recomputing_changes_no_gradient(layers, model, params, ragged, form, remat):
    given = ragged if form == "ragged" else layers.stacked(ragged, L, path="layers")
    lora = para.to_params(given)

    def gradient(remat):
        def loss(lora):
            y = model(remat).apply({"params": params, "lora": lora}, X)
            return jnp.square(y).sum()

        # How many are computed: those of the forward pass, and the recomputed ones.
        tanhs = str(jax.make_jaxpr(jax.grad(loss))(lora)).count("= tanh")
        return jax.grad(loss)(lora), tanhs

    (want, once), (got, more) = gradient("none"), gradient(remat)

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), got, want)
    assert max(jnp.abs(x).max() for x in jax.tree.leaves(got)) > 0.1
    assert more == 2 * once


def test_scanned_blocks_are_traced_once_and_others_one_by_one(
    layers, model, params, ragged
):
    def tanhs(adapters):
        lora = para.to_params(adapters)
        run = functools.partial(model().apply, {"params": params, "lora": lora})
        return str(jax.make_jaxpr(run)(X)).count("= tanh")

    assert tanhs(layers.stacked(ragged, L, path="layers")) == 1
    assert tanhs(ragged) == L


@pytest.mark.parametrize("unrolled", [False, True])
def test_layers_need_no_constants_and_may_share_nothing(layers, unrolled):
    from para_jax.flax.linen import Dense

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, constants):
            assert constants is None
            return Dense(M, use_bias=False, name="up")(x)

    kernels = np.random.default_rng(2).normal(size=(L, M, M)).astype(np.float32)
    zero = {"a": np.zeros((M, 1)), "b": np.zeros((1, M))}
    lora = {"1": {"up": zero}} if unrolled else {}

    got = layers.Layers(Block, L).apply(
        {"params": {"up": {"kernel": kernels}}, "lora": lora}, X, None
    )

    want = np.linalg.multi_dot([X, *kernels])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_unstacked_gives_every_layer_of_a_stack_its_own_path(layers, ragged):
    stack = layers.stacked(ragged, L, path="layers")

    back = layers.unstacked(stack, path="layers")

    assert sorted(back) == [f"layers/{i}/up" for i in range(L)]
    for path, x in back.items():
        want = ragged.get(path)
        delta = x.scale * x.a @ x.b
        expected = 0 * delta if want is None else want.scale * want.a @ want.b
        np.testing.assert_allclose(delta, expected, atol=1e-6)


def test_the_ragged_child_of_a_stack_runs(layers, model, params, ragged):
    parent = layers.stacked(ragged, L, path="layers")
    child = para.compress(para.Checkpoint(adapters=parent), para.Gamma(0.4))
    assert len({x.rank for x in child.adapters.values()}) > 1

    own = layers.unstacked(child.adapters, path="layers")
    layers.check(para.to_params(own), params)
    got = model().apply({"params": params, "lora": para.to_params(own)}, X)

    np.testing.assert_allclose(got, looped(params, own), rtol=0, atol=1e-4)


def test_adapters_of_other_modules_stay_as_they_are(layers, ragged):
    head = para.Adapter(a=np.ones((M, 1)), b=np.ones((1, 2)))

    got = layers.stacked({**ragged, "head": head}, L, path="layers")

    assert got["head"] is head
    assert layers.unstacked({"head": head}, path="layers")["head"].a is not None


def test_an_adapter_of_a_layer_that_is_not_there_is_refused(
    layers, model, params, ragged
):
    ragged[f"layers/{L}/up"] = ragged["layers/0/up"]
    lora = para.to_params(ragged)

    with pytest.raises(ValueError, match="numbers of layers, 0 to 2"):
        model().apply({"params": params, "lora": lora}, X)
    with pytest.raises(ValueError, match="belongs to no layer of the model"):
        layers.check(lora, params)
    with pytest.raises(ValueError, match="an adapter of layer 3, expected 0 to 2"):
        layers.stacked(ragged, L, path="layers")


def test_stacked_adapters_beside_those_of_one_layer_are_refused(
    layers, model, params, ragged
):
    ragged |= layers.stacked(ragged, L, path="layers")

    with pytest.raises(ValueError, match="numbers of layers, 0 to 2, or modules alone"):
        model().apply({"params": params, "lora": para.to_params(ragged)}, X)


def test_check_accepts_layers_own_adapters_and_finds_what_does_not_fit(
    layers, params, ragged
):
    layers.check(para.to_params(ragged), params)
    ragged["layers/2/up"] = para.Adapter(a=np.ones((M + 1, 2)), b=np.ones((2, N)))

    with pytest.raises(ValueError, match="'layers/2/up' does not fit its layer"):
        layers.check(para.to_params(ragged), params)
