"""Compare the training methods' initial factors and outputs with PEFT's."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from torch import nn

from train.methods import State
from train.methods.lora import Lora, RsLora
from train.methods.pissa import Pissa

WIDTHS = {"0": (6, 8), "2": (8, 3)}


@pytest.fixture
def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def adapted(base, **settings):
    """Return PEFT's model, and its factors in our orientation."""
    config = peft.LoraConfig(target_modules=list(WIDTHS), **settings)
    model = peft.get_peft_model(base, config)
    modules = {name: model.get_submodule(f"base_model.model.{name}") for name in WIDTHS}
    return model, modules


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def dense(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * a @ b


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (Lora(rank=4, scale=2.0), {"r": 4, "lora_alpha": 8}),
        (Lora(rank=3, scale=0.5), {"r": 3, "lora_alpha": 1.5}),
        (RsLora(rank=4, alpha=8.0), {"r": 4, "lora_alpha": 8, "use_rslora": True}),
        (RsLora(rank=3, alpha=5.0), {"r": 3, "lora_alpha": 5, "use_rslora": True}),
    ],
)
def test_the_same_factors_give_the_same_output(base, config, settings):
    model, modules = adapted(base, init_lora_weights=False, **settings)
    x = torch.randn(5, 6)
    params = {
        name: {
            "a": jnp.asarray(array(module.lora_A.default.weight).T, jnp.float32),
            "b": jnp.asarray(array(module.lora_B.default.weight).T, jnp.float32),
        }
        for name, module in modules.items()
    }

    adapters = config.method(1).finish(State(params))

    hidden, layers = array(x), {}
    for name, module in modules.items():
        layers[name] = array(module.base_layer.weight).T + dense(adapters[name])
    hidden = np.tanh(hidden @ layers["0"] + array(modules["0"].base_layer.bias))
    got = hidden @ layers["2"] + array(modules["2"].base_layer.bias)
    np.testing.assert_allclose(got, array(model(x)), atol=1e-5)


def test_the_first_factors_have_the_distribution_of_pefts():
    module = nn.Sequential(nn.Linear(500, 3))
    config = peft.LoraConfig(target_modules=["0"], r=8)
    theirs = peft.get_peft_model(module, config).get_submodule("base_model.model.0")
    state = (
        Lora(rank=8).method(1).init(jax.random.key(0), {"x": jnp.zeros((500, 3))}, None)
    )

    wanted = np.sort(array(theirs.lora_A.default.weight).ravel())
    got = np.sort(np.asarray(state.params["x"]["a"]).ravel())

    # Two samples of 4000: their quantiles agree to some percent of the range.
    np.testing.assert_allclose(got, wanted, atol=0.05 / np.sqrt(500))
    assert not array(theirs.lora_B.default.weight).any()


@pytest.mark.parametrize(("rank", "alpha"), [(2, 2), (2, 8), (3, 3)])
def test_pissa_starts_from_the_same_components(base, rank, alpha):
    kernels = {
        name: jnp.asarray(array(base.get_submodule(name).weight).T, jnp.float32)
        for name in WIDTHS
    }
    _, modules = adapted(base, init_lora_weights="pissa", r=rank, lora_alpha=alpha)

    method = Pissa(rank=rank, scale=alpha / rank).method(1)
    state = method.init(jax.random.key(0), kernels, None)

    for name, module in modules.items():
        a, b = (np.asarray(state.params[name][x], np.float64) for x in "ab")
        lower, upper = (array(x.default.weight) for x in (module.lora_B, module.lora_A))
        np.testing.assert_allclose(a @ b, (lower @ upper).T, atol=1e-5)
        residual = np.asarray(kernels[name]) - alpha / rank * a @ b
        np.testing.assert_allclose(
            residual, array(module.base_layer.weight).T, atol=1e-5
        )


def test_peft_refuses_a_rank_of_zero_as_we_do(base):
    with pytest.raises(ValueError, match="positive integer"):
        adapted(base, r=0)
