"""DoRA, against numbers from the authors' code (MIkumikumi0116/DoRA)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.methods import toy
from train.methods import dora
from train.methods.dora import Dora
from train.methods.method import State
from train.methods.schedule import Schedule
from train.methods.triplets import Triplets

STEPS = 40
CONFIG = Dora(rank=toy.RANK, target=2, t_init=5, t_final=9, delta_t=7)
PRUNINGS = {5: 1, 12: 1, 19: 1, 26: 3, 31: 6}  # int(6 u^3), and at least 1.

# In the paper's orientation: A is r x inputs, B is outputs x r.
A = np.float32([[1, 2, 2], [0, 3, 4], [1, 0, 0]])
C = np.float32([2, -1, 0.5])
B = np.float32([[1, 0, 2], [0, 2, 1]])


@pytest.fixture
def module():
    parts = (jnp.asarray(x) for x in (A.T, C, B.T))
    return Triplets(*({"x": part} for part in parts))


@pytest.fixture(scope="module")
def program():
    return toy.program(CONFIG.method(STEPS), STEPS, 0.05)


@pytest.fixture(scope="module")
def trained(program):
    return program(jax.random.key(1))


def shares(module):
    return jax.jit(dora.share)(module.a["x"], module.e["x"], module.b["x"])


def test_the_shares_are_those_of_the_authors_code(module):
    got = shares(module)

    pieces = [C[k] * np.outer(B[:, k], A[k]) for k in range(3)]
    norms = [np.linalg.norm(piece) for piece in pieces]
    np.testing.assert_allclose(norms, [6, 10, 1.118034], rtol=1e-6)
    assert np.linalg.norm(sum(pieces)) == pytest.approx(11.884864, rel=1e-6)
    np.testing.assert_allclose(got, [0.5048438, 0.8414063, 0.0940721], rtol=1e-6)


def test_the_smoothed_scores_are_those_of_the_authors_code(module):
    score = {"x": jnp.zeros(3)}
    for _ in range(3):
        score = dora.smooth(score, module, 0.9)

    want = [0.1368127, 0.2280211, 0.0254935]
    np.testing.assert_allclose(score["x"], want, rtol=2e-6)
    np.testing.assert_allclose(score["x"], (1 - 0.9**3) * shares(module), rtol=1e-6)


def test_the_penalty_is_the_mean_unbiased_variance(module):
    rows, columns = np.var(A, axis=1, ddof=1), np.var(B, axis=0, ddof=1)
    np.testing.assert_allclose(rows, [0.3333333, 4.3333333, 0.3333333], rtol=1e-6)
    np.testing.assert_allclose(columns, [0.5, 2, 0.5])

    got = float(dora.variance(module))

    assert got == pytest.approx(1.3333333, rel=1e-6)
    # The paper divides by the 3 components, not by their 6 vectors.
    assert (rows.sum() + columns.sum()) / 3 == pytest.approx(2 * got, rel=1e-6)
    assert 2 * got == pytest.approx(2.6666667, rel=1e-6)
    biased = np.mean([*np.var(A, axis=1), *np.var(B, axis=0)])
    assert biased == pytest.approx(0.8055556, rel=1e-6)


def test_the_squared_shares_of_orthogonal_components_sum_to_one():
    got = dora.share(jnp.eye(4)[:, :2], jnp.asarray([3.0, -4.0]), jnp.eye(3)[:2])

    np.testing.assert_allclose(got, [0.6, 0.8], rtol=1e-6)
    assert np.sum(got**2) == pytest.approx(1)


def test_the_shares_of_any_components_sum_to_at_least_one():
    generator = np.random.default_rng(0)
    share = jax.jit(dora.share)
    for _ in range(9):
        parts = (generator.normal(size=size) for size in ((5, 3), (3,), (3, 4)))

        got = share(*(jnp.asarray(x, jnp.float32) for x in parts))

        assert np.sum(got) >= 1 - 1e-5


def test_moving_a_factor_from_one_vector_to_the_other_changes_the_penalty_alone(module):
    t = jnp.asarray([2, 0.5, 3])
    moved = module._replace(
        a={"x": module.a["x"] / t[None]}, b={"x": module.b["x"] * t[:, None]}
    )

    np.testing.assert_allclose(shares(moved), shares(module), rtol=1e-5)
    assert abs(dora.variance(moved) - dora.variance(module)) > 0.1


@pytest.mark.parametrize(
    ("rank", "target", "steps", "periods", "counts"),
    [
        (
            *(12, 8, 1000, Schedule(150, 500, 100)),
            {150: 0, 250: 6, 350: 53, 450: 181, 500: 288},
        ),
        (
            *(16, 4, 3000, Schedule(500, 500, 500)),
            {500: 0, 1000: 13, 1500: 108, 2000: 364, 2500: 864},
        ),
    ],
)
def test_the_prunings_are_those_of_the_authors_code(
    rank, target, steps, periods, counts
):
    remove = 72 * (rank - target)

    every = {t: dora.pruned(t, steps, periods, remove) for t in range(1, steps + 1)}

    got = {t: count for t, count in every.items() if count}
    assert got == {t: max(count, 1) for t, count in counts.items()}


def test_most_is_left_half_way_and_the_target_at_the_end():
    periods = Schedule(500, 500, 500)

    left = [1152 - dora.pruned(t, 3000, periods, 864) for t in range(500, 3000, 500)]

    # The first pruning has a share of 0, and takes one component all the same.
    assert left == [1151, 1139, 1044, 788, 288]


def test_the_update_starts_at_zero_and_moves_the_values_alone(key):
    run = CONFIG.method(STEPS)
    state = run.init(key, toy.kernels(), None)

    adapters = run.adapters(state)
    grads = toy.gradients(run, state)

    for path, (m, n) in toy.SHAPES.items():
        np.testing.assert_array_equal(toy.delta(adapters[path]), 0)
        np.testing.assert_array_equal(grads.a[path], 0)
        np.testing.assert_array_equal(grads.b[path], 0)
        assert np.all(grads.e[path] != 0)
        a, c, b = (part[path] for part in state.params)
        assert (a.shape, b.shape) == ((m, toy.RANK), (toy.RANK, n))
        np.testing.assert_array_equal(dora.share(a, c, b), 0)


def test_both_factors_start_uniform_within_their_bounds(key):
    state = Dora().method(3000).init(key, {"x": jnp.zeros((54, 600))}, None)

    a, _, b = (np.asarray(part["x"]) for part in state.params)

    for x, bound in ((a, np.sqrt(6 / 54)), (b, np.sqrt(6 / 16))):
        assert 0.99 * bound < np.abs(x).max() <= bound
        assert np.std(x) == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert np.sqrt(6 / 16) == pytest.approx(0.61, abs=0.005)


def test_a_run_prunes_when_it_is_due_and_what_it_pruned_may_grow_again(trained):
    _, states = trained
    alive = toy.alive(states.params.e)

    for t in range(1, STEPS + 1):
        if t in PRUNINGS:
            assert alive[t - 1] == 12 - PRUNINGS[t], t
        else:
            assert alive[t - 1] == (12 if t < 31 else 6), t


def test_the_last_phase_keeps_the_components_it_began_with(trained):
    _, states = trained

    for path, values in states.params.e.items():
        c, keep = np.asarray(values), np.asarray(states.memory.keep[path])
        score = np.asarray(states.memory.score[path])
        assert np.all((c[30:] != 0) == keep[30])
        assert np.all(keep[30:] == keep[30])
        assert np.all(score[30:] == score[30])
        assert np.all(score[1:31] != score[:30])  # Before that it never rests.


def test_what_the_last_pruning_took_is_left_out_at_any_step(trained):
    run = CONFIG.method(STEPS)
    state = toy.at(trained[1], 28)  # Two steps after the pruning of 3.

    assert toy.alive(state.params.e) == 12
    assert sum(x.rank for x in run.finish(state).values()) == 9


def test_the_penalty_ends_with_the_last_pruning(trained):
    run = CONFIG.method(STEPS)

    for t in (0, 1, 29, 30, 31, 38):  # The next step is t + 2, from 1.
        state = toy.at(trained[1], t)
        want = 0.3 * dora.variance(state.params) if t + 2 <= 31 else 0
        np.testing.assert_allclose(run.penalty(state), want, rtol=1e-6)
    np.testing.assert_allclose(
        run.penalty(trained[0]), 0.3 * dora.variance(trained[0].params), rtol=1e-6
    )


def test_what_is_exported_is_what_the_model_saw_last(trained):
    run = CONFIG.method(STEPS)
    state = toy.at(trained[1], -1)

    masked, sliced = run.adapters(state), run.finish(state)

    assert sum(x.rank for x in sliced.values()) == 6
    for path, adapter in masked.items():
        got = toy.delta(sliced[path]) if path in sliced else 0
        np.testing.assert_allclose(got, toy.delta(adapter), atol=1e-6)
        a, c, b = (np.asarray(part[path], np.float64) for part in state.params)
        np.testing.assert_allclose(got, 2 * a @ np.diag(c) @ b, atol=1e-5)


def test_training_fits_the_goals_better_than_nothing(trained):
    run = CONFIG.method(STEPS)
    start, states = trained

    first, last = (toy.loss(run.adapters(x)) for x in (start, toy.at(states, -1)))

    assert last < 0.5 * first


def test_a_map_over_members_equals_a_loop(program, trained):
    keys = jnp.stack([jax.random.key(1), jax.random.key(2)])

    mapped = jax.vmap(program)(keys)

    equal = functools.partial(np.testing.assert_allclose, atol=1e-4)
    jax.tree.map(equal, toy.at(mapped, 0), trained)
    jax.tree.map(equal, toy.at(mapped, 1), program(keys[1]))


def test_a_target_of_the_whole_rank_prunes_nothing(module):
    run = Dora(rank=3, target=3).method(8)
    memory = run.init(jax.random.key(0), {"x": jnp.zeros((3, 2))}, None).memory
    state = State(module, memory)

    prune = jax.jit(run.after_step)

    for step in range(8):
        state = prune(state, state, None, jnp.int32(step))

    np.testing.assert_array_equal(state.params.e["x"], C)
    assert run.finish(state)["x"].rank == 3
    assert not any(dora.pruned(t, 8, Schedule(1, 1, 1), 0) for t in range(1, 9))


@pytest.mark.parametrize("shape", [(1, 4), (4, 1)])
def test_a_module_without_a_variance_is_refused(key, shape):
    init = Dora().method(3000).init

    with pytest.raises(ValueError, match=f"'x' is {shape[0]} x {shape[1]}: DoRA"):
        init(key, {"x": jnp.zeros(shape)}, None)


def test_what_cannot_be_reached_is_refused():
    with pytest.raises(ValueError, match="target is 17"):
        Dora(target=17).method(3000)
    with pytest.raises(ValueError, match="steps is 4"):
        Dora().method(4)


def test_a_schedule_that_does_not_fit_is_shrunk_and_said():
    assert Dora().schedule(3000) == (500, 500, 500, "")
    assert Dora().schedule(600)[:3] == (100, 100, 100)
    assert "shrunk in proportion to 100/100/100" in Dora().schedule(600).note
