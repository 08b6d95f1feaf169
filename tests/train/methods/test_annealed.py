"""Annealed ranks, against the cubic's formula and dense NumPy."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.methods import toy
from train.data import arrays
from train.methods import annealed
from train.methods.adalora import AdaLora
from train.methods.annealed import Annealed
from train.methods.schedule import Schedule
from train.models import bert
from train.runs import checkpoints, settings as runs

STEPS, RATE, DECAY = 40, 0.05, 0.01
FIRST, LAST = 5, 31
# Twelve ranks at first. Squeezes are due after the steps 7, 14, 21, 28 and 31.
CONFIG = Annealed(
    rank=toy.RANK, target=2, t_init=FIRST / STEPS, t_final=1 - LAST / STEPS, every=7
)
DUE = [7, 14, 21, 28, 31]
# No module is narrower than its rank: factors are determined but for their signs.
SHAPES = {"x": (7, 5), "y": (4, 9)}


def alive(params):
    """Return the number of components of all modules that are not zero."""
    found = {path: (np.asarray(x["b"]) != 0).any(-1) for path, x in params.items()}
    return toy.alive(found)


def cubic(t, modules):
    """AdaLoRA's formula (7), in float64."""
    start, end = toy.RANK * modules, 2 * modules
    left = np.clip(1 - (t - FIRST) / np.float64(LAST - FIRST), 0, 1)
    return int(np.floor(end + (start - end) * left**3))


@pytest.fixture(scope="module")
def program():
    return toy.program(CONFIG.method(STEPS), STEPS, RATE)


@pytest.fixture(scope="module")
def trained(program):
    return program(jax.random.key(1))


@pytest.fixture(scope="module")
def optimizer():
    return CONFIG.method(STEPS).optimizer(lambda count: RATE, DECAY)


@pytest.fixture(scope="module")
def update(optimizer):
    return jax.jit(optimizer.update, compiler_options=toy.QUICK)


@pytest.fixture(scope="module")
def adamw():
    """The update of optax's own."""
    made = optax.adamw(lambda count: RATE, weight_decay=DECAY)
    return jax.jit(made.update, compiler_options=toy.QUICK)


def drawn(seed):
    """Return params, and gradients, of two modules."""
    generator = np.random.default_rng(seed)

    def values():
        return {
            path: {
                "a": jnp.float32(generator.normal(size=(m, toy.RANK))),
                "b": jnp.float32(generator.normal(size=(toy.RANK, n))),
            }
            for path, (m, n) in SHAPES.items()
        }

    return values(), values()


@pytest.fixture(scope="module")
def at_step(optimizer, update):
    """Return a function: params, gradients, and a state that has seen two others."""

    def made(step, seed=0):
        params, grads = drawn(seed)
        moments = optimizer.init(params)
        for other in (1, 2):
            moments = update(drawn(seed + other)[1], moments, params)[1]
        return params, grads, moments._replace(step=jnp.int32(step))

    return made


@pytest.mark.parametrize(
    ("t", "left"), [(500, 1152), (550, 1088), (1000, 652), (2500, 288), (2999, 288)]
)
def test_the_budget_is_adaloras(t, left):
    """By its authors' code; the second by hand: 288 + 864 * .975^3 = 1088.8."""
    got = annealed.budgets(3000, Schedule(500, 500, 50), modules=72, rank=16, target=4)

    assert round(72 * float(got.average[t])) == left
    assert got.due[t] == (500 < t <= 2500)


def test_squeezes_are_due_from_the_first_period_to_the_last():
    got = annealed.budgets(STEPS, CONFIG.schedule(STEPS), modules=3, rank=4, target=2)

    assert np.flatnonzero(got.due).tolist() == DUE


def test_the_ranks_of_a_run_follow_the_cubic(trained):
    start, states = trained

    got, expected = alive(states.params), 12
    assert alive(start.params) == 0  # `b` is zero.
    for t in range(STEPS):
        expected = cubic(t, 3) if t in DUE else expected
        assert got[t] == expected, t
    assert expected == 6


def test_a_squeeze_keeps_the_largest_of_the_model(at_step, update, adamw):
    """Updates and moments, against dense float64 after optax's own AdamW."""
    params, grads, moments = at_step(14)
    modules, scale = len(SHAPES), CONFIG.scale

    updates, after = update(grads, moments, params)

    plain, adam = adamw(grads, moments.adamw, params)
    moved = jax.tree.map(lambda x, y: np.float64(x + y), params, plain)
    got = jax.tree.map(lambda x, y: np.float64(x + y), params, updates)
    svd = {p: np.linalg.svd(scale * x["a"] @ x["b"]) for p, x in moved.items()}
    pool = np.sort(np.concatenate([x.S[: toy.RANK] for x in svd.values()]))[::-1]
    budget = cubic(14, modules)
    assert 0 < budget < len(pool)
    for path, x in moved.items():
        u, s, vt = svd[path].U, svd[path].S[: toy.RANK], svd[path].Vh
        root = np.sqrt(np.where(s >= pool[budget - 1], s, 0) / scale)
        a, b = u[:, : toy.RANK] * root, root[:, None] * vt[: toy.RANK]
        signs = np.sign((a * got[path]["a"]).sum(0) + (root == 0))
        a, b = a * signs, b * signs[:, None]
        np.testing.assert_allclose(got[path]["a"], a, atol=2e-5)
        np.testing.assert_allclose(got[path]["b"], b, atol=2e-5)
        left, right = np.linalg.pinv(x["a"]) @ a, b @ np.linalg.pinv(x["b"])
        mu, nu = adam[0].mu[path], adam[0].nu[path]
        new = after.adamw[0]
        close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5)
        close(new.mu[path]["a"], mu["a"] @ right.T)
        close(new.mu[path]["b"], left.T @ mu["b"])
        close(new.nu[path]["a"], nu["a"] @ right.T**2)
        close(new.nu[path]["b"], left.T**2 @ nu["b"])
    assert after.adamw[0].count == adam[0].count
    assert after.step == 15


def test_between_squeezes_it_is_adamw_bit_for_bit(at_step, update, adamw):
    params, grads, moments = at_step(15)

    updates, after = update(grads, moments, params)

    plain, adam = adamw(grads, moments.adamw, params)
    jax.tree.map(np.testing.assert_array_equal, updates, plain)
    jax.tree.map(np.testing.assert_array_equal, after.adamw, adam)


def test_what_is_dropped_stays_zero_without_a_gradient(trained):
    run, states = CONFIG.method(STEPS), trained[1]

    for t in (DUE[1], DUE[-1], STEPS - 1):
        state = toy.at(states, t)
        grads = toy.gradients(run, state)
        for path, x in state.params.items():
            dead = ~(np.asarray(x["b"]) != 0).any(1)
            assert not np.any(np.asarray(x["a"])[:, dead])
            assert not np.any(grads[path]["a"][:, dead])
            assert not np.any(grads[path]["b"][dead])
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, grads)))


def test_a_module_may_lose_all_its_ranks_and_gradients_stay_finite():
    config = dataclasses.replace(CONFIG, target=2 / 3)
    states = toy.program(config.method(STEPS), STEPS, RATE)(jax.random.key(1))[1]
    run, state = config.method(STEPS), toy.at(states, -1)

    finished = run.finish(state)

    assert sum(x.rank for x in finished.values()) == 2
    assert finished.keys() < toy.SHAPES.keys()
    leaves = jax.tree.leaves((states, toy.gradients(run, state)))
    assert all(np.isfinite(x).all() for x in leaves)


def test_what_is_exported_is_what_the_model_saw_last(trained):
    run, state = CONFIG.method(STEPS), toy.at(trained[1], -1)

    masked, ragged = run.adapters(state), run.finish(state)

    ranks = [ragged[path].rank if path in ragged else 0 for path in toy.SHAPES]
    assert sum(ranks) == 6
    assert len(set(ranks)) > 1
    for path, adapter in masked.items():
        got = toy.delta(ragged[path]) if path in ragged else 0
        np.testing.assert_allclose(got, toy.delta(adapter), atol=1e-6)


def test_training_fits_the_goals_better_than_nothing(trained):
    run, (start, states) = CONFIG.method(STEPS), trained

    first, last = (toy.loss(run.adapters(x)) for x in (start, toy.at(states, -1)))

    # The goals are of ranks 1, 3 and 2: the budget finds those of all three.
    assert last < 0.05 * first


def test_one_program_serves_all_steps(optimizer, at_step):
    params, grads, moments = at_step(0)
    traces = []

    @jax.jit
    def step(params, moments):
        traces.append(None)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments

    for _ in range(DUE[1] + 1):
        params, moments = step(params, moments)

    assert alive(params) == cubic(DUE[1], len(SHAPES))
    assert len(traces) == 1


@pytest.mark.parametrize("maps", [1, 2])
def test_a_map_over_members_leaves_the_squeeze_a_branch(optimizer, at_step, maps):
    given = at_step(14)
    update = optimizer.update
    for size in range(2, 2 + maps):
        update = jax.vmap(update)
        given = jax.tree.map(lambda x, n=size: jnp.stack([x] * n), given)
    params, grads, moments = given

    program = jax.make_jaxpr(update)(grads, moments, params)

    assert moments.step.shape == (3, 2)[-maps:]
    branches = [x for x in program.eqns if x.primitive.name == "cond"]
    # A predicate a member would make it a `select`, after both branches.
    assert [x.invars[0].aval.shape for x in branches] == [()]


def test_members_are_squeezed_when_each_is_due(optimizer, at_step, update):
    members = [at_step(step, seed=step) for step in (13, 14, 21)]
    params, grads, moments = jax.tree.map(lambda *x: jnp.stack(x), *members)

    mapped = jax.jit(jax.vmap(optimizer.update), compiler_options=toy.QUICK)
    got = mapped(grads, moments, params)

    for i, (params, grads, moments) in enumerate(members):
        want = update(grads, moments, params)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
            toy.at(got, i),
            want,
        )


def test_a_map_over_members_equals_a_loop(program, trained):
    keys = jnp.stack([jax.random.key(1), jax.random.key(2)])

    mapped = jax.vmap(program)(keys)

    run = CONFIG.method(STEPS)
    for i, want in enumerate((trained, program(keys[1]))):
        # Deltas: a component's sign is of no meaning.
        (_, got), (_, want) = toy.at(mapped, i), want
        one, other = (run.adapters(toy.at(x, -1)) for x in (got, want))
        for path in toy.SHAPES:
            np.testing.assert_allclose(
                toy.delta(one[path]), toy.delta(other[path]), atol=1e-3
            )
        np.testing.assert_array_equal(alive(got.params), alive(want.params))


@pytest.fixture
def given(tiny, params):
    """The inputs of a run of two members, on six modules of a tiny BERT."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, 11, size=2 + i % 4).tolist() for i in range(13)]
    train = arrays.pack(ids, generator.integers(0, 3, size=13).tolist(), width=5)
    # Squeezes after the steps 4, 8, 12 and 14.
    config = Annealed(rank=3, target=1.5, t_init=0.1, t_final=0.3, every=4)
    run = runs.Run(
        method=config, seeds=(0, 7), learning_rates=(RATE,), steps=20, batch=6
    )
    model = bert.BertClassifier(dataclasses.replace(tiny, num_hidden_layers=1), 3)
    encoder = {"layer": {"0": params["bert"]["encoder"]["layer"]["0"]}}
    base = {"bert": {**params["bert"], "encoder": encoder}}
    return runs.inputs(run, model, base, arrays.Data(train, 13))


def test_a_run_goes_on_from_a_checkpoint_to_the_same_numbers(given, tmp_path):
    with checkpoints.opened(tmp_path) as saved:
        for progress in runs.advance(given, runs.begin(given), chunk=10):
            checkpoints.save(saved, progress.step, progress.learners)
            whole = jax.device_get(progress.learners)
            if progress.step == 10:
                middle = whole.state.params
    shutil.rmtree(tmp_path / "20")
    with checkpoints.opened(tmp_path) as saved:
        like = jax.eval_shape(lambda: runs.begin(given))
        step, learners = checkpoints.restore(saved, like)
    (progress,) = runs.advance(given, learners, step, chunk=10)

    jax.tree.map(np.testing.assert_array_equal, progress.learners, whole)
    # Two squeezes on either side: the budget is half of 18.
    assert (alive(middle) > 9).all()
    np.testing.assert_array_equal(alive(whole.state.params), [9, 9])


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"t_init": -0.1}, 3000),
        ({"t_final": -0.1}, 3000),
        ({"t_init": 0.6, "t_final": 0.5}, 3000),
        ({"every": 0}, 3000),
        ({}, 1),
    ],
)
def test_an_impossible_schedule_is_refused(changes, steps):
    with pytest.raises(ValueError, match=f"in {steps} steps: expected shares"):
        Annealed(**changes).method(steps)


def test_a_target_above_the_rank_is_refused():
    with pytest.raises(ValueError, match="target is 17"):
        Annealed(target=17).method(3000)


@pytest.mark.parametrize("steps", [3000, 1500, 300])
def test_the_periods_are_those_that_adalora_is_fitted_to(steps):
    first, last, every, note = Annealed().schedule(steps)

    assert (first, last) == AdaLora().schedule(steps)[:2] == (steps // 6, steps // 6)
    assert (every, note) == (50, "")
