"""Check pruning of an NNX model's adapters in training, with their optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import para_jax as para

nnx = pytest.importorskip("flax.nnx")

from para_jax.flax import nnx as lora  # noqa: E402

pytestmark = pytest.mark.user_defaults
RANK = 4


class Model(nnx.Module):
    """Name one layer like an optimizer moment."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 6, rngs=rngs)
        self.nu = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        return self.nu(jnp.tanh(self.first(x)))


def loss(model, x, y):
    return jnp.square(model(x) - y).mean()


@nnx.jit
def step(model, optimizer, x, y):
    gradient = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model, x, y)
    optimizer.update(model, gradient)


@nnx.jit
def smaller(model, optimizer, policy):
    found = para.from_tree(nnx.state(model, nnx.LoRAParam))
    adapters, transforms = para.squeeze(found.adapters, policy)
    nnx.update(model, para.to_tree(dataclasses.replace(found, adapters=adapters)))
    nnx.update(optimizer, para.project_moments(nnx.state(optimizer), transforms))


@pytest.fixture
def training():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    model = Model(nnx.Rngs(0))
    lora.attach(
        model,
        {
            "first": para.Adapter(a=draw(8, RANK), b=draw(RANK, 6)),
            "nu": para.Adapter(a=draw(6, RANK), b=draw(RANK, 5)),
        },
    )
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.LoRAParam)
    x, y = draw(32, 8), draw(32, 5)
    for _ in range(5):
        step(model, optimizer, x, y)
    return model, optimizer, (x, y)


def factors(layer):
    return [np.asarray(x[...], np.float64) for x in (layer.lora_a, layer.lora_b)]


def moments(optimizer):
    (adam, *_) = nnx.to_pure_dict(nnx.state(optimizer))["opt_state"].values()
    return jax.device_get(adam)


@pytest.mark.slow
def test_the_moments_go_through_what_takes_the_old_factors_to_the_new(training):
    model, optimizer, _ = training
    layers = {"first": model.first, "nu": model.nu}
    old = {path: factors(layer) for path, layer in layers.items()}
    before = moments(optimizer)

    smaller(model, optimizer, para.Rank(2))

    after = moments(optimizer)
    assert after["count"] == before["count"] == 5
    for path, layer in layers.items():
        (a, b), (new_a, new_b) = old[path], factors(layer)
        left, right = np.linalg.pinv(a) @ new_a, new_b @ np.linalg.pinv(b)
        for name, power in (("mu", 1), ("nu", 2)):
            was, now = before[name][path], after[name][path]
            want = was["lora_a"] @ right.T**power, left.T**power @ was["lora_b"]
            np.testing.assert_allclose(now["lora_a"], want[0], rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(now["lora_b"], want[1], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_what_was_dropped_stays_dropped_and_the_training_goes_on(training):
    model, optimizer, data = training
    smaller(model, optimizer, para.Rank(2))
    layers = model.first, model.nu
    before = float(loss(model, *data))

    for _ in range(50):
        step(model, optimizer, *data)

    kept = sum(int(np.any(factors(x)[0], axis=0).sum()) for x in layers)
    assert kept == 2 * len(layers)
    assert float(loss(model, *data)) < 0.9 * before
