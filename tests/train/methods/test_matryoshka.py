"""MatryoshkaLoRA: the weights of its components, its cuts, and the area of a curve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.methods import State
from train.methods.lora import Lora
from train.methods.matryoshka import Matryoshka, aurac

SHAPES = {"up": (5, 7), "down": (7, 4)}


@pytest.fixture
def kernels():
    return {path: jnp.ones(shape) for path, shape in SHAPES.items()}


@pytest.fixture
def params(key):
    return {
        path: {"a": jax.random.normal(key, (m, 16)), "b": jnp.ones((16, n))}
        for path, (m, n) in SHAPES.items()
    }


@pytest.mark.parametrize(
    ("weight", "values"),
    [
        ("one", (5, 4, 3, 2, 1)),
        ("inverse", (1.9375, 0.9375, 0.4375, 0.1875, 0.0625)),
        ("inverse_sqrt", (2.810660, 1.810660, 1.103553, 0.603553, 0.25)),
    ],
)
def test_the_weights_of_the_components(key, kernels, weight, values):
    config = Matryoshka(weight=weight)

    got = config.sums()

    want = np.repeat(values, [1, 1, 2, 4, 8])
    np.testing.assert_allclose(got, want, atol=5e-7)
    state = config.method(9).init(key, kernels, None)
    np.testing.assert_array_equal(state.memory, got)


@pytest.mark.parametrize("weight", ["one", "inverse", "inverse_sqrt"])
def test_training_sees_the_sum_of_the_cuts(params, weight):
    config = Matryoshka(weight=weight)
    at_rank = jax.jit(config.at_rank)

    state = State(params, config.sums())
    got = config.method(9).adapters(state)

    power = {"one": 0, "inverse": 1, "inverse_sqrt": 0.5}[weight]
    cuts = {rank: at_rank(state, rank) for rank in config.ranks}
    for path, pair in params.items():
        a, b = (np.asarray(pair[x], np.float64) for x in "ab")
        want = {r: a[:, :r] @ b[:r] / r**power for r in config.ranks}
        for rank, adapters in cuts.items():
            update = adapters[path].a @ adapters[path].b
            np.testing.assert_allclose(update, want[rank], atol=1e-4)
        seen = got[path].a @ got[path].b
        np.testing.assert_allclose(seen, sum(want.values()), atol=1e-4)


def test_one_rank_is_plain_lora(params):
    config = Matryoshka(ranks=(16,), target=16, weight="inverse")
    lora = Lora(rank=16, scale=1 / 16).method(9)

    got = config.method(9).adapters(State(params, config.sums()))

    for path, want in lora.adapters(State(params)).items():
        want = want.scale * want.a @ want.b
        np.testing.assert_allclose(got[path].a @ got[path].b, want, atol=1e-6)


def test_after_the_last_step_the_update_is_the_cut_at_the_target(key, kernels):
    config = Matryoshka(target=2)
    method = config.method(3)
    state = method.init(key, kernels, None)
    state = State(jax.tree.map(jnp.ones_like, state.params), state.memory)

    seen = []
    for step in range(3):
        state = method.after_step(state, state, None, jnp.asarray(step))
        seen.append(np.asarray(state.memory))

    np.testing.assert_array_equal(seen[:2], np.stack([config.sums()] * 2))
    np.testing.assert_allclose(seen[2], [0.5**0.5] * 2 + [0] * 14, rtol=1e-6)
    for path, adapter in method.finish(state).items():
        assert adapter.rank == 2
        np.testing.assert_allclose(adapter.a @ adapter.b, 2 * 0.5**0.5, rtol=1e-6)
        last = method.adapters(state)[path]
        np.testing.assert_allclose(last.a @ last.b, 2 * 0.5**0.5, rtol=1e-6)


def test_the_area_under_a_curve_of_accuracies():
    ranks, accuracies = [1, 2, 4, 8, 16], [80, 82, 84, 85, 85.5]

    assert aurac(ranks, accuracies) == pytest.approx(84.4666667, abs=1e-7)
    assert aurac(ranks, accuracies, axis="log2") == pytest.approx(83.4375, abs=1e-12)
    assert aurac([1, 16], [80.0, 80.0]) == 80


@pytest.mark.parametrize(
    "config",
    [
        Matryoshka(ranks=(2, 1, 4)),
        Matryoshka(ranks=(0, 4)),
        Matryoshka(ranks=(4, 4)),
        Matryoshka(ranks=(1, 2, 8)),
        Matryoshka(ranks=()),
    ],
)
def test_ranks_out_of_order_or_without_the_target_are_refused(config):
    with pytest.raises(ValueError, match=r"ranks are \(.*\) and target is 4, expected"):
        config.method(1)
