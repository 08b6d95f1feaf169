"""DyLoRA: the computation and the training at a step's rank, and the draw of ranks."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.methods import State
from train.methods.dylora import Dylora
from train.methods.lora import Lora

MODES = ["frozen", "unfrozen"]
SHAPES = {"up": (5, 7), "down": (7, 4)}


@pytest.fixture
def kernels():
    return {path: jnp.ones(shape) for path, shape in SHAPES.items()}


@pytest.fixture
def params(key):
    """Factors of rank 4 with no zero among them."""
    return {
        path: {"a": 1 + jax.random.uniform(key, (m, 4)), "b": jnp.full((4, n), 0.3)}
        for path, (m, n) in SHAPES.items()
    }


def at(state, rank):
    """Return the state in a step of this rank."""
    return State(state.params, state.memory | {"rank": jnp.asarray(rank)})


def memory(rank):
    return {"rank": jnp.asarray(rank), "key": jax.random.key_data(jax.random.key(1))}


def grads_of(config, params, rank):
    method = config.method(9)

    def loss(params):
        adapters = method.adapters(State(params, memory(rank)))
        return sum(jnp.sin(x.scale * x.a @ x.b).sum() for x in adapters.values())

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rank", "y"), [(1, (40, 0)), (2, (20, 44)), (4, (124, 10))])
def test_the_output_of_an_example_at_each_rank(mode, rank, y):
    config = Dylora(rank=4, target=2, alpha=8.0, mode=mode)
    a = jnp.arange(1.0, 13).reshape(4, 3).T
    b = jnp.array([[1.0, 0], [0, 1], [2, 1], [1, -1]])
    state = State({"x": {"a": a, "b": b}}, memory(rank))
    x = jnp.array([[1.0, -1, 2]])

    for adapters in (config.method(9).adapters(state), config.at_rank(state, rank)):
        adapter = adapters["x"]
        np.testing.assert_allclose((x @ adapter.a) @ adapter.b, [y], rtol=1e-6)
        assert adapter.scale == 1


@pytest.mark.parametrize(("mode", "rows"), [("frozen", [1]), ("unfrozen", [0, 1])])
def test_which_components_a_step_of_rank_2_gives_a_gradient(params, mode, rows):
    _, grads = grads_of(Dylora(rank=4, target=2, mode=mode), params, 2)

    for pair in grads.values():
        assert np.flatnonzero(np.asarray(pair["a"]).any(0)).tolist() == rows
        assert np.flatnonzero(np.asarray(pair["b"]).any(1)).tolist() == rows


def test_at_the_highest_rank_the_unfrozen_mode_is_lora(params):
    config = Dylora(rank=4, target=2, alpha=6.0, mode="unfrozen")
    lora = Lora(rank=4, scale=1.5).method(9)

    def loss(params):
        adapters = lora.adapters(State(params))
        return sum(jnp.sin(x.scale * x.a @ x.b).sum() for x in adapters.values())

    got, want = grads_of(config, params, 4), jax.value_and_grad(loss)(params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), got, want
    )


def test_the_ranks_of_one_run_are_prefixes_of_one_adapter(params):
    config = Dylora(rank=4, target=2, alpha=8.0)

    at_rank = jax.jit(config.at_rank)
    cut = {rank: at_rank(State(params), rank) for rank in (1, 2, 4)}

    for rank, adapters in cut.items():
        for path, adapter in adapters.items():
            a, b = (np.asarray(params[path][x]) for x in "ab")
            np.testing.assert_array_equal(adapter.a[:, :rank], a[:, :rank])
            np.testing.assert_allclose(adapter.b[:rank], 8 / rank * b[:rank], rtol=1e-6)
            np.testing.assert_array_equal(adapter.a[:, rank:], 0)
            np.testing.assert_array_equal(adapter.b[rank:], 0)


def test_ranks_are_drawn_evenly_and_differ_by_key(key, kernels):
    method, draws = Dylora().method(10**6), 4000

    def step(state, index):
        return method.after_step(state, state, None, index), state.memory["rank"]

    def ranks(key):
        state = method.init(key, kernels, None)
        return jax.lax.scan(step, state, jnp.arange(draws))[1]

    first, second = np.asarray(jax.jit(jax.vmap(ranks))(jax.random.split(key)))

    counts = collections.Counter(first.tolist())
    assert counts.keys() == set(range(1, 17))
    share = draws / 16  # Its deviation is 15.3.
    assert all(abs(count - share) < 5 * 15.3 for count in counts.values())
    assert 0 < (first == second).mean() < 0.1
    # One draw says nothing of the next: no more repeats than chance gives.
    assert (first[1:] == first[:-1]).mean() == pytest.approx(1 / 16, abs=0.02)


def test_after_the_last_step_the_rank_is_the_target(key, kernels):
    method = Dylora(target=3).method(5)
    state = method.init(key, kernels, None)
    state = State(jax.tree.map(jnp.ones_like, state.params), state.memory)

    for step in range(5):
        state = method.after_step(state, state, None, jnp.asarray(step))

    assert state.memory["rank"] == 3
    for path, adapter in method.finish(state).items():
        assert adapter.rank == 3
        seen = method.adapters(state)[path]
        np.testing.assert_allclose(adapter.a @ adapter.b, seen.a @ seen.b, rtol=1e-6)


def test_momentum_moves_what_has_no_gradient_unless_strict(params):
    """A component has the gradient 1 in the first of three steps, then none."""
    moved = {}
    for strict in (False, True):
        method = Dylora(rank=4, target=2, strict=strict).method(9)
        optimizer = method.optimizer(lambda step: 1.0, 0.0)
        state, moments = State(params, memory(2)), optimizer.init(params)
        path = [1.0]
        for rank in (2, 1, 1):
            before = at(state, rank)
            _, grads = grads_of(Dylora(rank=4, target=2), before.params, rank)
            grads = jax.tree.map(jnp.sign, grads)
            updates, moments = optimizer.update(grads, moments, before.params)
            params_after = jax.tree.map(jnp.add, before.params, updates)
            after = State(params_after, before.memory)
            state = method.after_step(before, after, grads, jnp.asarray(0))
            change = state.params["up"]["b"] - before.params["up"]["b"]
            path.append(float(np.abs(change[1, 0])))
        moved[strict] = path[1:]

    np.testing.assert_allclose(moved[False], [1.0, 0.670058, 0.517957], rtol=1e-5)
    np.testing.assert_allclose(moved[True], [1.0, 0, 0], rtol=1e-5)


@pytest.mark.parametrize(("mode", "rows"), [("frozen", [2]), ("unfrozen", [0, 1, 2])])
def test_strict_restores_all_but_what_the_step_trained(params, mode, rows):
    method = Dylora(rank=4, target=2, mode=mode, strict=True).method(9)
    before = State(params, memory(3))
    after = State(jax.tree.map(lambda x: x + 1, params), before.memory)

    got = method.after_step(before, after, None, jnp.asarray(0)).params

    moved = np.isin(np.arange(4), rows)
    for path, pair in params.items():
        a, b = (np.asarray(got[path][x] - pair[x]) for x in "ab")
        np.testing.assert_allclose(a, np.broadcast_to(moved[None], a.shape), atol=1e-6)
        np.testing.assert_allclose(
            b, np.broadcast_to(moved.T[:, None], b.shape), atol=1e-6
        )


@pytest.mark.parametrize("target", [0, 17])
def test_a_target_beyond_the_ranks_is_refused(target):
    with pytest.raises(ValueError, match=f"target is {target}, expected 1 to .* 16"):
        Dylora(target=target).method(1)
