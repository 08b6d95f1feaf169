"""SoRA, against numbers from the authors' code (TsinghuaC3I/SoRA)."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.methods import toy
from train.methods import method, sora
from train.methods.method import State
from train.methods.sora import Sora

STEPS, RATE = 40, 0.05
# The gates move as far in 40 steps as with the settings of the paper in thousands.
QUICK = {"rank": toy.RANK, "gate_lr": 0.05, "lam": 2.0, "warmup": 6, "xi": 0.03}
CONFIGS = {
    "paper": Sora(**QUICK),
    "official": Sora(variant="official", **QUICK),
    "finished": Sora(hard_finish=True, **(QUICK | {"lam": 0.1})),
}
GATES = [-3, -2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2, 2.5, 3]


@pytest.fixture(scope="module")
def programs():
    return {
        name: toy.program(config.method(STEPS), STEPS, RATE)
        for name, config in CONFIGS.items()
    }


@pytest.fixture(scope="module")
def histories(programs):
    return {name: program(jax.random.key(1)) for name, program in programs.items()}


@pytest.fixture
def grown(key):
    """A state with a second factor other than zero, with the gates 1, 0, -0.5 and 0."""
    state = CONFIGS["paper"].method(STEPS).init(key, toy.kernels(), None)
    g = {path: jnp.asarray([1, 0, -0.5, 0]) for path in toy.SHAPES}
    b = {path: x + 0.3 for path, x in state.params.b.items()}
    return State(state.params._replace(e=g, b=b))


def gradients(state):
    return toy.gradients(CONFIGS["paper"].method(STEPS), state)


def test_the_proximal_step_is_a_soft_threshold():
    got = sora.soft_threshold(jnp.asarray(GATES), 1.0)

    np.testing.assert_array_equal(got, [-2, -1, -0.5, 0, 0, 0, 0, 0.5, 1, 1.5, 2])


def test_the_authors_code_also_zeroes_what_it_has_just_shrunk():
    got = sora.shrink_twice(jnp.asarray(GATES), 1.0)

    np.testing.assert_array_equal(got, [-2, -1, 0, -1, 0, 0, 1, 0, 1, 1.5, 2])


def test_the_soft_threshold_minimises_the_proximal_objective():
    grid = np.linspace(-3, 3, 6001)
    for g, tau in itertools.product(np.linspace(-2, 2, 23), (0.0, 0.3, 1.1)):
        best = grid[np.argmin((grid - g) ** 2 / 2 + tau * np.abs(grid))]

        got = sora.soft_threshold(jnp.asarray([g], jnp.float32), tau)

        np.testing.assert_allclose(got, best, atol=1e-3)


def test_the_soft_threshold_is_odd_and_brings_no_two_values_further_apart():
    g = np.linspace(-2, 2, 41, dtype=np.float32)

    got = np.asarray(sora.soft_threshold(jnp.asarray(g), 0.7))

    np.testing.assert_array_equal(got[::-1], -got)
    assert np.all(np.abs(np.diff(got)) <= np.diff(g) + 1e-6)


def test_a_gradient_step_and_the_proximal_step_after_it():
    moved = jnp.asarray([0.3]) - 1e-3 * 0.2

    np.testing.assert_allclose(moved, 0.2998, rtol=1e-6)
    np.testing.assert_allclose(
        sora.soft_threshold(moved, 1e-3 * 0.1), 0.2997, rtol=1e-6
    )


def test_the_second_factor_alone_has_a_gradient_at_the_start(key):
    state = CONFIGS["paper"].method(STEPS).init(key, toy.kernels(), None)

    grads = gradients(state)

    for path in toy.SHAPES:
        np.testing.assert_array_equal(grads.a[path], 0)
        np.testing.assert_array_equal(grads.e[path], 0)
        assert np.any(grads.b[path] != 0)


def test_the_gates_start_normal_and_the_first_factor_as_lora_has_it(key):
    kernels = {"x": jnp.zeros((3, 2))}
    state = Sora(rank=4000).method(3000).init(key, kernels, None)

    gates = state.params.e["x"]
    assert np.mean(gates) == pytest.approx(0, abs=0.05)
    assert np.std(gates) == pytest.approx(1, abs=0.05)
    want = method.kaiming(key, kernels, 4000)["x"]
    np.testing.assert_array_equal(state.params.a["x"], want)


def test_a_gate_at_zero_stops_its_factors_and_may_open_again(grown):
    grads = gradients(grown)

    for path in toy.SHAPES:
        open_ = [True, False, True, False]
        columns = np.any(grads.a[path] != 0, axis=0)
        rows = np.any(grads.b[path] != 0, axis=1)
        np.testing.assert_array_equal(columns, open_)
        np.testing.assert_array_equal(rows, open_)
        assert np.all(grads.e[path] != 0)


def test_a_gate_at_zero_whose_second_factor_is_zero_never_opens(grown):
    b = {path: x.at[1].set(0) for path, x in grown.params.b.items()}

    grads = gradients(State(grown.params._replace(b=b)))

    for path in toy.SHAPES:
        assert grads.e[path][1] == 0
        np.testing.assert_array_equal(grads.a[path][:, 1], 0)
        np.testing.assert_array_equal(grads.b[path][1], 0)


def test_a_step_of_the_paper_moves_a_gate_without_gradient_by_the_threshold_alone():
    config = Sora(rank=2, warmup=1, target_sparsity=0.5)
    g = {"x": jnp.asarray([0.6745, 1e-4])}
    zeros = {"x": jnp.zeros((3, 2))}
    state = State(sora.Triplets(a=zeros, e=g, b={"x": jnp.zeros((2, 3))}))
    step = config.method(6).after_step

    during, after = (step(state, state, None, jnp.int32(t)).params for t in (0, 1))

    np.testing.assert_array_equal(during.e["x"], g["x"])
    np.testing.assert_allclose(after.e["x"], [0.6744, 0], rtol=1e-6)
    assert pytest.approx(6745) == 0.6745 / (1e-3 * 0.1)


@pytest.mark.parametrize("name", ["paper", "official"])
def test_without_gradients_no_gate_opens(name, key):
    run = CONFIGS[name].method(STEPS)
    state = run.init(key, toy.kernels(), None)
    closed = []
    for step in range(6, STEPS):
        state = run.after_step(state, state, None, jnp.int32(step))
        closed.append(12 - toy.alive(state.params.e))

    assert np.all(np.diff(closed) >= 0)
    assert closed[-1] > closed[0]


def test_a_sparsity_of_seven_tenths_leaves_more_than_a_quarter_of_the_rank():
    assert sora.zeros(0.7, 72 * 16) == 807
    assert pytest.approx(4.79, abs=0.005) == (1152 - 807) / 72
    assert Sora().target == pytest.approx(4.8)


def test_the_zeros_needed_are_not_off_by_a_rounding():
    cases = [(0.7, 10), (0.7, 30), (0, 9), (0.5, 3)]

    assert [sora.zeros(*case) for case in cases] == [7, 21, 0, 2]


def test_the_paper_waits_then_closes_gates_up_to_the_target(histories):
    _, states = histories["paper"]

    closed, need = 12 - toy.alive(states.params.e), 9  # ceil(.7 * 12).
    assert np.all(closed[:6] == 0)
    assert closed[-1] >= need
    reached = np.argmax(closed >= need)
    assert 6 <= reached < STEPS - 1
    assert np.all(closed[reached:] == closed[reached])  # They stay closed, and no more.


def test_open_gates_are_no_longer_shrunk_once_the_target_is_reached():
    config = Sora(rank=4, warmup=0, target_sparsity=0.5)
    g = {"x": jnp.asarray([0, 0, 0.5, -0.5])}
    before = State(sora.Triplets({"x": jnp.ones((3, 4))}, g, {"x": jnp.ones((4, 2))}))
    moved = before.params._replace(e={"x": g["x"] + 0.01})

    after = config.method(6).after_step(before, State(moved), None, jnp.int32(3))

    np.testing.assert_allclose(after.params.e["x"], [0, 0, 0.51, -0.49], rtol=1e-6)


def test_a_hard_finish_reaches_the_target_in_the_last_step(histories):
    _, states = histories["finished"]

    closed = 12 - toy.alive(states.params.e)

    assert closed[-2] < 9 == closed[-1]


def test_a_hard_finish_closes_the_smallest_components():
    config = Sora(rank=4, target_sparsity=0.5, hard_finish=True)
    a = np.float32([[1, 1, 3, 1], [0, 2, 4, 0]])
    g, b = np.float32([1, -1, 0.1, 2]), np.float32([[3, 4], [1, 0], [2, 0], [0, 1]])
    sizes = [np.linalg.norm(g[k] * np.outer(a[:, k], b[k])) for k in range(4)]
    state = State(sora.Triplets(*({"x": jnp.asarray(x)} for x in (a, g, b))))

    got = config.method(6).after_step(state, state, None, jnp.int32(5)).params.e["x"]

    np.testing.assert_allclose(sizes, [5, np.sqrt(5), 1, 2], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(got) != 0, [True, True, False, False])


def test_the_loss_of_the_authors_code_has_the_mean_gate(grown):
    penalty = Sora(rank=toy.RANK, variant="official").method(STEPS).penalty

    assert penalty(grown) == pytest.approx(10 * 1.5 / 4)
    assert CONFIGS["paper"].method(STEPS).penalty(grown) == 0


def test_a_warmup_that_does_not_fit_is_shrunk_and_said():
    assert Sora().schedule(3000) == (500, 0, 1, "")
    assert Sora().schedule(600).t_init == 100
    assert "shrunk to 100" in Sora().schedule(600).note
    assert CONFIGS["official"].schedule(600) == (0, 0, 1, "")


@pytest.mark.parametrize(("variant", "rate"), [("paper", 1e-3), ("official", 0.2)])
def test_the_gates_have_a_learning_rate_of_their_own_and_no_decay(grown, variant, rate):
    config = Sora(rank=toy.RANK, variant=variant)
    optimizer = config.method(STEPS).optimizer(lambda count: 0.2, 0.5)
    ones = jax.tree.map(jnp.ones_like, grown.params)

    updates = toy.first_update(optimizer, ones, grown.params)

    # The first step of Adam is the learning rate.
    for path in toy.SHAPES:
        np.testing.assert_allclose(updates.e[path], -rate, rtol=1e-5)
        decay = 0.2 * 0.5 * grown.params.a[path]
        np.testing.assert_allclose(updates.a[path], -0.2 - decay, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_exported_is_what_the_model_saw_last(histories, name):
    run = CONFIGS[name].method(STEPS)
    state = toy.at(histories[name][1], -1)

    masked, sliced = run.adapters(state), run.finish(state)

    assert sum(x.rank for x in sliced.values()) == toy.alive(state.params.e)
    for path, adapter in masked.items():
        got = toy.delta(sliced[path]) if path in sliced else 0
        np.testing.assert_allclose(got, toy.delta(adapter), atol=1e-6)
        a, g, b = (np.asarray(part[path], np.float64) for part in state.params)
        np.testing.assert_allclose(got, 2 * a @ np.diag(g) @ b, atol=1e-5)


def test_a_map_over_members_equals_a_loop(programs, histories):
    keys = jnp.stack([jax.random.key(1), jax.random.key(2)])

    mapped = jax.vmap(programs["finished"])(keys)

    equal = functools.partial(np.testing.assert_allclose, atol=1e-4)
    jax.tree.map(equal, toy.at(mapped, 0), histories["finished"])
    jax.tree.map(equal, toy.at(mapped, 1), programs["finished"](keys[1]))


def test_a_sparsity_of_zero_closes_no_gate(grown):
    run = Sora(**(QUICK | {"target_sparsity": 0.0})).method(8)
    e = {path: jnp.asarray([1e-6, 1, -1e-6, 2]) for path in toy.SHAPES}
    state = State(grown.params._replace(e=e))

    state = run.after_step(state, state, None, jnp.int32(7))

    assert {x.rank for x in run.finish(state).values()} == {toy.RANK}


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("variant", "other", "variant is 'other', expected 'paper' or 'official'"),
        ("target_sparsity", 1.0, "target_sparsity is 1.0"),
        ("target_sparsity", -0.1, "target_sparsity is -0.1"),
        ("rank", 0, "rank is 0"),
        ("warmup", -2, "warmup is -2"),
    ],
)
def test_an_impossible_setting_is_refused(name, value, match):
    config = Sora()  # The hook of the tests would refuse the wrong literal itself.
    object.__setattr__(config, name, value)

    with pytest.raises(ValueError, match=match):
        config.method(3000)
