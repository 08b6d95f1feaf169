"""PiSSA and MiLoRA: components of the kernels, and plain updates of these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.methods import State
from train.methods.milora import Milora
from train.methods.pissa import Pissa

SHAPES = [(8, 6), (6, 8), (5, 5), (9, 4)]


def started(config, kernels):
    return config.method(1).init(jax.random.key(0), kernels, None)


def pair(state, path):
    return (np.asarray(state.params[path][name], np.float64) for name in "ab")


def dense(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * a @ b


@pytest.fixture
def kernels():
    random = np.random.default_rng(0)
    return {
        f"{m}x{n}": jnp.asarray(random.normal(size=(m, n)), jnp.float32)
        for m, n in SHAPES
    }


@pytest.mark.parametrize(
    ("config", "root", "residual"),
    [(Pissa, [1.5, 0, 0], [0, 4, 1]), (Milora, [0, 0, 0.5], [9, 4, 0])],
)
def test_the_factors_of_diag_9_4_1(config, root, residual):
    kernel = np.diag([9.0, 4, 1]).astype(np.float32)

    a, b = pair(started(config(rank=1, scale=4.0), {"x": jnp.asarray(kernel)}), "x")

    np.testing.assert_allclose(np.abs(a[:, 0]), root, atol=1e-6)
    np.testing.assert_allclose(np.abs(b[0]), root, atol=1e-6)
    np.testing.assert_allclose(kernel - 4 * a @ b, np.diag(residual), atol=1e-5)


@pytest.mark.parametrize(
    "config", [Pissa(rank=3, scale=2.0), Milora(rank=3, scale=2.0)]
)
def test_the_factors_are_balanced_components_of_the_kernel(kernels, config):
    state = started(config, kernels)

    for path, kernel in kernels.items():
        u, s, vt = np.linalg.svd(np.asarray(kernel, np.float64), full_matrices=False)
        part = slice(3) if isinstance(config, Pissa) else slice(-3, None)
        a, b = pair(state, path)
        np.testing.assert_allclose(a.T @ a, np.diag(s[part] / 2), atol=1e-4)
        np.testing.assert_allclose(b @ b.T, np.diag(s[part] / 2), atol=1e-4)
        want = (u[:, part] * s[part]) @ vt[part]
        np.testing.assert_allclose(2 * a @ b, want, atol=1e-5)


def test_what_is_left_of_the_kernel_has_the_other_singular_values():
    kernel = np.random.default_rng(0).normal(size=(6, 5))
    s = np.linalg.svd(kernel, compute_uv=False)

    def left(config):
        given = {"x": jnp.asarray(kernel, jnp.float32)}
        a, b = pair(started(config, given), "x")
        return np.linalg.svd(kernel - a @ b, compute_uv=False)

    assert s[2] == pytest.approx(1.9013929, abs=1e-7)
    np.testing.assert_allclose(left(Pissa(rank=2)), [*s[2:], 0, 0], atol=1e-5)
    np.testing.assert_allclose(left(Milora(rank=2)), [*s[:3], 0, 0], atol=1e-5)


@pytest.mark.parametrize(
    "config", [Pissa(rank=2, scale=3.0), Milora(rank=2, scale=3.0)]
)
def test_training_is_that_of_the_factors_on_what_is_left_of_the_kernel(kernels, config):
    method, state = config.method(1), started(config, kernels)
    moved = jax.tree.map(lambda x: x + 0.1 * jnp.cos(7 * x), state.params)

    before, after = method.adapters(state), method.adapters(State(moved, state.memory))

    for path, kernel in kernels.items():
        a0, b0 = pair(state, path)
        a, b = pair(State(moved), path)
        residual = np.asarray(kernel, np.float64) - 3 * a0 @ b0
        want = residual + 3 * a @ b
        np.testing.assert_allclose(kernel + dense(after[path]), want, atol=1e-5)
        np.testing.assert_allclose(dense(before[path]), 0, atol=1e-12)
        assert np.linalg.matrix_rank(dense(after[path])) == 4
        assert (after[path].rank, after[path].nominal) == (4, 2)
        exported = method.finish(State(moved, state.memory))[path]
        np.testing.assert_array_equal(dense(exported), dense(after[path]))


def test_the_gradient_of_a_factor_is_that_on_what_is_left_of_the_kernel(kernels):
    method, state = Pissa(rank=2).method(1), started(Pissa(rank=2), kernels)

    def loss(params):
        x = method.adapters(State(params, state.memory))["8x6"]
        return ((kernels["8x6"] + x.scale * x.a @ x.b) ** 3).sum()

    got = jax.grad(loss)(state.params)["8x6"]

    a, b = pair(state, "8x6")
    gradient = 3 * np.asarray(kernels["8x6"], np.float64) ** 2
    np.testing.assert_allclose(got["a"], gradient @ b.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got["b"], a.T @ gradient, rtol=1e-4, atol=1e-4)


def test_members_share_one_decomposition(kernels):
    init = Pissa(rank=2).method(1).init
    keys = jax.random.split(jax.random.key(0), 3)

    # JAX refuses an output without the mapped axis if anything in it was mapped.
    got = jax.vmap(init, in_axes=(0, None, None), out_axes=None)(keys, kernels, None)

    want = init(keys[0], kernels, None)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_nothing_pulls_the_components_out_of_the_kernel(kernels):
    state = started(Pissa(rank=2), kernels)
    optimizer = Pissa(rank=2).method(1).optimizer(lambda step: 0.1, 0.5)
    zero = jax.tree.map(jnp.zeros_like, state.params)

    updates, _ = optimizer.update(zero, optimizer.init(state.params), state.params)

    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), updates)


@pytest.mark.parametrize("config", [Pissa, Milora])
def test_a_rank_that_a_kernel_does_not_have_is_refused(config):
    with pytest.raises(ValueError, match="rank is 0, expected at least 1"):
        config(rank=0).method(1)
    with pytest.raises(ValueError, match=r"'x': rank is 4, but the kernel \[9, 3\]"):
        started(config(rank=4), {"x": jnp.ones((9, 3))})
