"""LoRA, rsLoRA and LoRA+: their starts, gradients, sizes and rates."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import para_jax as para
from para_jax.flax.linen import Dense
from train.methods import method
from train.methods.lora import Lora, RsLora
from train.methods.lora_plus import LoraPlus

SHAPES = {"up": (5, 7), "down": (7, 4)}


@pytest.fixture
def kernels():
    return {path: jnp.ones(shape) for path, shape in SHAPES.items()}


def shapes_of(modules):
    return {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in modules.items()
    }


def parameters(config, modules):
    """Return the number of trained values of a method, without computing any."""
    made = config.method(1)
    state = jax.eval_shape(
        lambda key, kernels: made.init(key, kernels, None),
        jax.random.key(0),
        shapes_of(modules),
    )
    return sum(x.size for x in jax.tree.leaves(state.params))


def test_at_the_start_the_update_is_zero_and_only_b_has_a_gradient(key, kernels):
    lora = Lora(rank=3).method(1)
    state = lora.init(key, kernels, None)
    wanted = jax.random.normal(key, (5, 7))

    def loss(params):
        x = lora.adapters(method.State(params))["up"]
        return ((x.scale * x.a @ x.b - wanted) ** 2).sum()

    grads = jax.grad(loss)(state.params)["up"]

    np.testing.assert_array_equal(state.params["up"]["b"], 0)
    np.testing.assert_array_equal(grads["a"], 0)
    assert (np.asarray(grads["b"]) != 0).all()


def test_the_first_factor_is_uniform_as_in_peft(key):
    a = Lora(rank=8).method(1).init(key, {"x": jnp.ones((1000, 3))}, None)
    a = np.asarray(a.params["x"]["a"])

    bound = 1 / np.sqrt(1000)
    assert a.shape == (1000, 8)
    assert np.abs(a).max() <= bound
    assert a.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize("config", [Lora(rank=3, scale=2.5), RsLora(rank=3)])
def test_the_gradients_are_those_of_the_product(key, config):
    first, second, third = jax.random.split(key, 3)
    a, b = jax.random.normal(first, (5, 3)), jax.random.normal(second, (3, 7))
    gradient = jax.random.normal(third, (5, 7))
    made = config.method(1)

    def loss(pair):
        x = made.adapters(method.State({"x": pair}))["x"]
        return (gradient * (x.scale * x.a @ x.b)).sum()

    got = jax.grad(loss)({"a": a, "b": b})

    scale = 2.5 if isinstance(config, Lora) else 8 / np.sqrt(3)
    a, b, gradient = (np.asarray(x, np.float64) for x in (a, b, gradient))
    np.testing.assert_allclose(got["a"], scale * gradient @ b.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["b"], scale * a.T @ gradient, rtol=1e-5, atol=1e-5)


def test_the_merged_layer_is_the_layer_beside_its_adapter(key):
    first, second, third = jax.random.split(key, 3)
    kernel, x = jax.random.normal(first, (5, 7)), jax.random.normal(second, (2, 5))
    lora = Lora(rank=3).method(1)
    params = lora.init(third, {"x": kernel}, None).params
    params["x"]["b"] = jax.random.normal(third, (3, 7))
    adapter = lora.finish(method.State(params))["x"]
    update = adapter.scale * adapter.a @ adapter.b

    factors = para.to_params({"x": adapter})["x"]
    variables = {"params": {"kernel": kernel}, "lora": factors}
    got = Dense(7, use_bias=False).apply(variables, x)

    merged = {"params": {"kernel": kernel + update}}
    want = flax.linen.Dense(7, use_bias=False).apply(merged, x)
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(kernel + update - update, kernel, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "parameters_of_all"),
    [(1, 165_888), (2, 331_776), (4, 663_552), (8, 1_327_104), (16, 2_654_208)],
)
def test_the_size_on_a_base_encoder(rank, parameters_of_all):
    names = ["query", "key", "value", "output"]
    block = dict.fromkeys(names, (768, 768))
    block |= {"up": (768, 3072), "down": (3072, 768)}
    modules = {f"{i}/{name}": shape for i in range(12) for name, shape in block.items()}

    assert parameters(Lora(rank=rank), modules) == parameters_of_all


@pytest.mark.parametrize(
    ("rank", "parameters_of_all"), [(4, 7_450_624), (16, 29_802_496)]
)
def test_the_size_on_gemma3_4b(rank, parameters_of_all):
    d, heads, pairs, wide = 2560, 2048, 1024, 10_240
    block = {"q": (d, heads), "k": (d, pairs), "v": (d, pairs), "o": (heads, d)}
    block |= {"gate": (d, wide), "up": (d, wide), "down": (wide, d)}
    modules = {f"{i}/{name}": shape for i in range(34) for name, shape in block.items()}

    assert len(modules) == 238
    assert sum(m + n for m, n in block.values()) == 54_784
    assert parameters(Lora(rank=rank), modules) == parameters_of_all


def test_the_scale_of_lora_is_the_same_at_every_rank_and_that_of_rslora_falls(kernels):
    def scale(config):
        made = config.method(1)
        state = made.init(jax.random.key(0), kernels, None)
        return made.adapters(state)["up"].scale

    assert [scale(Lora(rank=r)) for r in (1, 4, 16)] == [2.0, 2.0, 2.0]
    assert [scale(RsLora(rank=r)) for r in (1, 4, 16)] == [8.0, 4.0, 2.0]


@pytest.mark.parametrize("config", [Lora, RsLora, LoraPlus])
def test_a_rank_of_zero_is_refused(config):
    with pytest.raises(ValueError, match="rank is 0, expected at least 1"):
        config(rank=0).method(1)


def test_lora_plus_moves_b_faster_and_both_decay_at_their_own_rate(key, kernels):
    state = LoraPlus(rank=3, ratio=16.0).method(1).init(key, kernels, None)
    params = jax.tree.map(jnp.ones_like, state.params)
    optimizer = (
        LoraPlus(ratio=16.0).method(1).optimizer(lambda step: 0.01 / (step + 1), 0.1)
    )
    grads = jax.tree.map(lambda x: jnp.full_like(x, 0.3), params)

    moments, moved = optimizer.init(params), []
    for _ in range(2):
        updates, moments = optimizer.update(grads, moments, params)
        moved.append(updates)

    # Adam divides a constant gradient by itself; the decay is 0.1 of the parameter.
    for updates, rate in zip(moved, (0.01, 0.005), strict=True):
        for pair in updates.values():
            np.testing.assert_allclose(pair["a"], -rate * 1.1, rtol=1e-4)
            np.testing.assert_allclose(pair["b"], -16 * rate * 1.1, rtol=1e-4)


def test_lora_plus_of_ratio_one_is_lora(key, kernels):
    config = LoraPlus(rank=3, ratio=1.0).method(1)
    state = config.init(key, kernels, None)
    grads = jax.tree.map(jnp.cos, state.params)

    def updates(optimizer):
        return optimizer.update(grads, optimizer.init(state.params), state.params)[0]

    got = updates(config.optimizer(lambda step: 0.01, 0.1))

    want = updates(optax.adamw(0.01, weight_decay=0.1))
    jax.tree.map(np.testing.assert_array_equal, got, want)
