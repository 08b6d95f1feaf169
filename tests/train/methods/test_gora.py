"""GoRA: ranks by importance, and first factors along the descent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.methods import State
from train.methods.gora import Gora, descent

# Four kernels of an encoder, and an importance of each.
SHAPES = np.array([(768, 768), (768, 768), (768, 3072), (3072, 768)])
IMPORTANCE = jnp.array([4.0, 1, 3, 2])

MODULES = {"a": (8, 6), "b": (6, 9), "c": (7, 7), "d": (5, 4)}


@pytest.fixture
def kernels():
    random = np.random.default_rng(0)
    return {
        path: jnp.asarray(random.normal(size=shape), jnp.float32)
        for path, shape in MODULES.items()
    }


@pytest.fixture
def gradients(kernels):
    """Gradients of different sizes, for different ranks."""
    return {
        path: jnp.asarray(scale * np.cos(9 * np.asarray(x)))
        for scale, (path, x) in zip((4.0, 1.0, 2.0, 0.1), kernels.items(), strict=True)
    }


def dense(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * a @ b


@pytest.mark.parametrize("unit", [1.0, 1e-6])
@pytest.mark.parametrize(
    ("config", "ranks", "parameters"),
    [
        (Gora(), [11, 2, 3, 2], 39_168),
        (Gora(size="sqrt"), [8, 2, 3, 2], 34_560),
        (Gora(rounding="nearest"), [11, 3, 3, 2], 40_704),
        (Gora(size="sqrt", rounding="nearest"), [8, 2, 4, 3], 42_240),
        (Gora(least=4, most=32), [11, 4, 4, 4], 53_760),
        (Gora(size="sqrt", least=4, most=32), [8, 4, 4, 4], 49_152),
        (Gora(most=5), [5, 2, 3, 2], 29_952),
    ],
)
def test_the_ranks_of_four_kernels(unit, config, ranks, parameters):
    got = np.asarray(config.ranks(unit * IMPORTANCE, SHAPES))

    assert got.tolist() == ranks
    assert got @ SHAPES.sum(1) == parameters


@pytest.mark.parametrize(
    ("config", "shape", "rank"),
    [
        (Gora(), (768, 768), 4),
        (Gora(size="sqrt"), (768, 768), 4),
        (Gora(), (2560, 1024), 4),
        # 4 sqrt(3584) = 239.47 is rounded to 239 before it is divided.
        (Gora(size="sqrt"), (2560, 1024), 3),
        (Gora(size="sqrt", rounding="nearest"), (2560, 1024), 4),
    ],
)
def test_equal_modules_have_equal_ranks(config, shape, rank):
    got = config.ranks(jnp.ones(2), np.array([shape, shape]))

    assert got.tolist() == [rank, rank]


def test_a_rank_is_no_more_than_a_kernel_has():
    got = Gora(least=0).ranks(jnp.array([1.0, 0]), np.array([(9, 3), (9, 3)]))

    assert got.tolist() == [3, 0]


def test_the_second_factor_of_an_example():
    a = jnp.array([[1.0, 0], [0, 2], [0, 0]])
    gradient = jnp.array([[1.0, 4], [2, 5], [3, 6]])

    # gamma sqrt(m) / alpha = 1.
    b = descent({"x": a}, {"x": gradient}, gamma=1.0, alpha=np.sqrt(3))["x"]

    np.testing.assert_allclose(b, [[-1, -4], [-1, -2.5]], atol=1e-5)
    np.testing.assert_allclose(a @ b, [[-1, -4], [-2, -5], [0, 0]], atol=1e-5)
    assert (gradient * (a @ b)).sum() == pytest.approx(-46, abs=1e-4)


def test_the_first_update_is_the_best_within_the_first_factor(gradients):
    random = np.random.default_rng(1)
    a = {
        path: jnp.asarray(random.normal(size=(m, 3)), jnp.float32)
        for path, (m, _) in MODULES.items()
    }

    b = jax.jit(lambda *x: descent(*x, gamma=0.7, alpha=5.0))(a, gradients)

    for path, gradient in gradients.items():
        x, g = (np.asarray(y, np.float64) for y in (a[path], gradient))
        projector = x @ np.linalg.pinv(x)
        np.testing.assert_allclose(projector @ projector, projector, atol=1e-12)
        assert np.trace(projector) == pytest.approx(3)
        xi = 0.7 * np.sqrt(len(x)) / 5
        np.testing.assert_allclose(x @ b[path], -xi * projector @ g, atol=1e-4)
        best = np.linalg.lstsq(x, -xi * g)[0]
        np.testing.assert_allclose(b[path], best, atol=1e-4)


def test_the_first_update_has_the_asked_share_of_the_gradients_norm(key):
    method = Gora(rank=8, least=8, most=8, alpha=16.0, gamma=0.05).method(1)

    def share(key):
        drawn, key = jax.random.split(key)
        gradient = jax.random.normal(drawn, (64, 40))
        state = method.init(key, {"x": jnp.ones((64, 40))}, {"x": gradient})
        adapter = method.adapters(state)["x"]
        return ((adapter.a @ adapter.b) ** 2).sum() / (gradient**2).sum()

    got = jax.jit(jax.vmap(share))(jax.random.split(key, 300))

    # A projection on 8 of 64 dimensions keeps an eighth of the energy.
    assert np.sqrt(got.mean()) == pytest.approx(0.05, abs=2e-4)


def test_the_start_is_a_descent_and_a_component_beyond_the_rank_is_zero(
    key, kernels, gradients
):
    method = Gora(least=0).method(1)

    state = jax.jit(method.init)(key, kernels, gradients)

    ranks = {path: int(rank) for path, rank in state.memory.items()}
    assert len(set(ranks.values())) > 2
    assert ranks["d"] == 0
    for path, adapter in method.adapters(state).items():
        assert (np.asarray(adapter.a) != 0).any(0).sum() == ranks[path]
        assert (np.asarray(adapter.b) != 0).any(1).sum() == ranks[path]
        slope = (dense(adapter) * np.asarray(gradients[path])).sum()
        assert slope < 0 if ranks[path] else slope == 0


def test_the_importance_is_the_mean_of_kernel_times_gradient(key, kernels):
    gradients = {
        path: x / kernels[path]
        for path, x in zip(MODULES, (-1.0, 1.0, 3.0, 1.0), strict=True)
    }
    config = Gora(rank=2, least=0)

    state = jax.jit(config.method(1).init)(key, kernels, gradients)

    # Of a budget of 2 (14 + 15 + 14 + 9), for ranks that cost 14, 15, 14 and 9.
    shares = 104 * np.array([1, 1, 3, 1]) / 6
    want = np.round(shares) // [14, 15, 14, 9]
    assert [int(state.memory[path]) for path in MODULES] == want.tolist()


def test_the_scale_is_that_of_rslora_for_each_module(key, kernels, gradients):
    method = Gora().method(1)
    state = jax.jit(method.init)(key, kernels, gradients)

    for path, adapter in method.adapters(state).items():
        a, b = (np.asarray(state.params[path][x], np.float64) for x in "ab")
        want = 16 / np.sqrt(int(state.memory[path])) * a @ b
        np.testing.assert_allclose(dense(adapter), want, rtol=1e-5, atol=1e-7)


def test_training_does_not_wake_a_component_and_the_export_cuts_it_off(
    key, kernels, gradients
):
    method = Gora(least=0).method(1)
    first = jax.jit(method.init)(key, kernels, gradients)
    optimizer = method.optimizer(lambda step: 0.1, 0.01)

    def loss(params):
        adapters = method.adapters(State(params, first.memory))
        return sum(jnp.sin(x.a @ x.b).sum() for x in adapters.values())

    @jax.jit
    def step(params, moments):
        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    params, moments = first.params, optimizer.init(first.params)
    for _ in range(3):
        params, moments = step(params, moments)

    state = State(params, first.memory)
    exported = method.finish(state)
    assert {path: x.rank for path, x in exported.items()} == {
        path: int(rank) for path, rank in first.memory.items() if rank
    }
    for path, adapter in method.adapters(state).items():
        want = dense(exported[path]) if path in exported else 0
        np.testing.assert_allclose(dense(adapter), want, atol=1e-6)
        assert not np.allclose(dense(adapter), dense(method.adapters(first)[path])) or (
            path == "d"
        )


def test_each_member_has_the_ranks_of_its_own_gradients(key, kernels, gradients):
    method = Gora().method(1)
    turned = dict(zip(gradients, reversed(gradients.values()), strict=True))
    turned = {path: jnp.resize(x, MODULES[path]) for path, x in turned.items()}
    both = jax.tree.map(lambda *x: jnp.stack(x), gradients, turned)

    got = jax.jit(jax.vmap(method.init, in_axes=(None, None, 0)))(key, kernels, both)
    init = jax.jit(method.init)

    for index, given in enumerate((gradients, turned)):
        want = init(key, kernels, given)
        mine = jax.tree.map(lambda x, i=index: x[i], got)
        assert jax.tree.map(int, mine.memory) == jax.tree.map(int, want.memory)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
            mine.params,
            want.params,
        )


def test_without_gradients_it_does_not_start(key, kernels):
    method = Gora(gradient_batches=7).method(1)

    assert method.gradient_batches == 7
    with pytest.raises(ValueError, match="mean over 7 batches"):
        method.init(key, kernels, None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gora(least=5), "least, rank and most are 5, 4 and 16"),
        (Gora(most=3), "least, rank and most are 1, 4 and 3"),
        (Gora(rank=0, least=0), "a rank of at least 1"),
        (Gora(gradient_batches=0), "gradient_batches is 0, expected at least 1"),
    ],
)
def test_an_impossible_setting_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        config.method(1)
