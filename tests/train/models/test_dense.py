import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.models import dense

SHAPES = [(8, 6, 3), (6, 8, 1), (5, 5, 7)]  # (m, n, r); the last has r > m


@pytest.fixture
def draw():
    generator = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_an_adapter_acts_as_if_its_product_were_in_the_kernel(draw, m, n, r):
    params = {"kernel": draw(m, n), "bias": draw(n)}
    a, b, x = draw(m, r), draw(r, n), draw(2, 4, m)

    got = dense.Dense(n).apply({"params": params, "lora": {"a": a, "b": b}}, x)

    want = x @ (params["kernel"] + a @ b) + params["bias"][None, None]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_without_an_adapter_it_is_a_plain_dense_layer(draw):
    params, x = {"kernel": draw(8, 6), "bias": draw(6)}, draw(3, 8)

    got = dense.Dense(6).apply({"params": params}, x)

    want = x @ params["kernel"] + params["bias"][None]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_initialisation_makes_parameters_only(key, draw):
    variables = dense.Dense(6).init(key, draw(3, 8))

    got = jax.tree.map(lambda x: x.shape, variables)

    assert got == {"params": {"kernel": (8, 6), "bias": (6,)}}


def test_the_gradient_of_the_adapter_leaves_the_kernel_alone(draw):
    params, x = {"kernel": draw(8, 6), "bias": draw(6)}, draw(3, 8)
    lora = {"a": draw(8, 2), "b": np.zeros((2, 6), np.float32)}

    def loss(lora):
        return dense.Dense(6).apply({"params": params, "lora": lora}, x).sum()

    got = jax.grad(loss)(lora)

    assert got["a"].shape == (8, 2)
    np.testing.assert_array_equal(got["a"], np.zeros((8, 2)))
    want = np.repeat((x @ lora["a"]).sum(0)[:, None], 6, axis=1)
    np.testing.assert_allclose(got["b"], want, rtol=1e-4)


def test_an_adapter_under_a_wrong_path_is_refused(draw):
    params = {"block": {"query": {"kernel": draw(8, 6)}}}
    lora = {"block": {"key": {"a": draw(8, 2), "b": draw(2, 6)}}}

    with pytest.raises(ValueError, match=r"'block/key' belongs to no.*'block/query'"):
        dense.check(lora, params)


@pytest.mark.parametrize(
    "shapes",
    [
        {"a": (6, 2), "b": (2, 8)},  # Transposed.
        {"a": (8, 2), "b": (3, 6)},  # Two ranks.
        {"a": (8, 2)},
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(draw, shapes):
    params = {"query": {"kernel": draw(8, 6)}}
    lora = {"query": {name: draw(*shape) for name, shape in shapes.items()}}

    with pytest.raises(ValueError, match=r"'query' does not fit.*\[8, r\], \[r, 6\]"):
        dense.check(lora, params)
