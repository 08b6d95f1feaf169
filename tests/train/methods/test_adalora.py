"""AdaLoRA, against numbers from the authors' code (QingruZhang/AdaLoRA)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.methods import toy
from train.methods import adalora
from train.methods.adalora import AdaLora
from train.methods.method import State
from train.methods.schedule import Schedule
from train.methods.triplets import Triplets

MODULES = {"start": 72 * 16, "end": 72 * 4}
STEPS = 40
CONFIG = AdaLora(rank=toy.RANK, target=2, t_init=5, t_final=9, delta_t=7)

# Two modules in the paper's orientation (A is r x inputs, B is outputs x r), and the
# gradients of two steps.
A = [[[1, 0, 2], [0, 1, -1]], [[1, 1, 0], [2, 0, 0]]]
E = [[2, 1], [-1, 0.5]]
B = [[[1, 0], [0, 2]], [[0, 1], [1, 0]]]
GRADIENTS = [
    (
        [[[0.1, 0.2, 0.1], [0, -0.3, 0.1]], [[0.2, 0, 0.1], [0.1, 0.1, 0.1]]],
        [[0.5, -0.2], [0.1, 0.4]],
        [[[0.2, 0.1], [0.3, -0.1]], [[0.1, 0.2], [-0.1, 0.5]]],
    ),
    (
        [[[0.2, 0.1, 0], [0.1, 0.1, -0.2]], [[-0.1, 0.3, 0.2], [0.2, 0.2, 0]]],
        [[0.1, 0.6], [0.2, -0.2]],
        [[[0.1, 0.1], [0.2, 0.3]], [[0.3, -0.1], [0.2, 0.2]]],
    ),
]


def ours(a, e, b):
    """Triplets of modules "0" and "1" from the paper's orientation."""

    def named(values, transposed):
        arrays = [jnp.asarray(x, jnp.float32) for x in values]
        return {str(i): x.mT if transposed else x for i, x in enumerate(arrays)}

    return Triplets(a=named(a, True), e=named(e, False), b=named(b, True))


@pytest.fixture
def pair():
    return ours(A, E, B)


@pytest.fixture(scope="module")
def program():
    return toy.program(CONFIG.method(STEPS), STEPS, 0.05)


@pytest.fixture(scope="module")
def trained(program):
    return program(jax.random.key(1))


@pytest.mark.parametrize(
    ("steps", "t", "left", "masks"),
    [
        *[(3000, t, 1152, False) for t in (0, 499, 500)],
        (3000, 501, 1150, False),
        (3000, 999, 653, False),
        (3000, 1000, 652, True),
        (3000, 1500, 396, True),
        (3000, 2000, 301, True),
        (3000, 2499, 288, False),
        *[(3000, t, 288, True) for t in (2500, 2501, 2502, 2999)],
        (10_000, 1000, 1015, True),
        (10_000, 2000, 788, True),
        (10_000, 5000, 396, True),
        (10_000, 9000, 288, True),
        (1150, 501, 1134, False),
        (1150, 600, 320, False),
        (1150, 650, 288, True),
        (1150, 651, 288, True),
    ],
)
def test_the_budget_is_that_of_the_authors_code(steps, t, left, masks):
    got = adalora.budget(t, steps, Schedule(500, 500, 500), **MODULES)

    assert got == (left, masks)


def test_a_window_without_a_multiple_of_the_interval_masks_once():
    periods = Schedule(500, 500, 500)

    masked = [t for t in range(1150) if adalora.budget(t, 1150, periods, **MODULES)[1]]

    assert masked == list(range(650, 1150))


def test_a_window_that_does_not_exist_is_shrunk_instead():
    assert AdaLora().schedule(1000)[:3] == (166, 166, 166)
    assert AdaLora().schedule(1000).note
    assert AdaLora().schedule(3000) == (500, 500, 500, "")


def test_the_scores_are_those_of_the_authors_code(pair):
    zeros = jax.tree.map(jnp.zeros_like, pair)
    memory = adalora.Memory(zeros, zeros, {})

    for grads in GRADIENTS:
        memory = adalora.observe(memory, pair, ours(*grads), beta1=0.85, beta2=0.85)

    i, u = memory.importance.e, memory.uncertainty.e
    np.testing.assert_allclose(i["0"], [0.1575, 0.1155], rtol=1e-6)
    np.testing.assert_allclose(i["1"], [0.04275, 0.0405], rtol=1e-6)
    np.testing.assert_allclose(u["0"], [0.11475, 0.09435], rtol=1e-6)
    np.testing.assert_allclose(u["1"], [0.034425, 0.0306], rtol=1e-6)
    got = adalora.scores(memory)
    np.testing.assert_allclose(got["0"], [0.0194000813, 0.0175382625], rtol=1e-6)
    np.testing.assert_allclose(got["1"], [0.0031943531, 0.003821175], rtol=1e-6)


def test_masking_to_a_budget_of_two_empties_the_second_module(pair):
    # The window is steps 0 to 2: at step 1 the budget is int(2 + 2 / 8).
    config = AdaLora(rank=2, target=1, t_init=0, t_final=5, delta_t=1)
    allocate = jax.jit(config.method(7).after_step)
    start = config.method(7).init(jax.random.key(0), {"0": jnp.zeros((3, 2))}, None)
    zeros = jax.tree.map(jnp.zeros_like, pair)
    keep = dict.fromkeys("01", start.memory.keep["0"])
    state = State(pair, adalora.Memory(zeros, zeros, keep))

    for step, grads in enumerate(GRADIENTS):
        state = allocate(state, state, ours(*grads), jnp.int32(step))

    np.testing.assert_array_equal(state.params.e["0"], [2, 1])
    np.testing.assert_array_equal(state.params.e["1"], [0, 0])
    np.testing.assert_array_equal(state.memory.keep["0"], [True, True])
    np.testing.assert_array_equal(state.memory.keep["1"], [False, False])
    np.testing.assert_array_equal(state.params.a["1"], pair.a["1"])
    np.testing.assert_array_equal(state.params.b["1"], pair.b["1"])


def test_the_penalty_is_the_mean_norm_and_not_of_its_square(pair):
    norms = [5, 4.2426407, 3, 0]

    assert adalora.orthogonality(pair) == pytest.approx(3.0606602, rel=1e-6)
    assert np.mean(norms) == pytest.approx(3.0606602, rel=1e-6)
    assert sum(x**2 for x in norms) == pytest.approx(52)
    state = State(pair, ())
    penalty = AdaLora(orth_weight=0.5).method(3000).penalty
    assert penalty(state) == pytest.approx(1.5303301, rel=1e-6)


def test_the_penalty_has_a_gradient_at_an_orthonormal_factor(pair):
    grads = jax.jit(jax.grad(adalora.orthogonality))(pair)

    np.testing.assert_array_equal(grads.b["1"], 0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    # With G = a^T a - I: d||G|| / da = 2 a G / ||G||, a quarter of it in the mean.
    a = np.array(A[0]).T
    gram = a.T @ a - np.eye(2)
    want = 2 * a @ gram / np.linalg.norm(gram) / 4
    np.testing.assert_allclose(grads.a["0"], want, rtol=1e-5)


@pytest.mark.parametrize(
    ("width", "norm"), [(768, 2.775), (3072, 0.983), (1024, 2.373), (2560, 0.341)]
)
def test_the_factors_start_at_the_known_distance_from_orthonormal(key, width, norm):
    init = AdaLora().method(3000).init

    state = init(key, {"x": jnp.zeros((width, width))}, None)

    # Of one draw: the smaller norms are left over from larger numbers.
    assert adalora.orthogonality(state.params) == pytest.approx(norm, abs=0.06)


def test_the_update_starts_at_zero_and_moves_the_values_alone(key):
    run = CONFIG.method(STEPS)
    state = run.init(key, toy.kernels(), None)

    grads = toy.gradients(run, state)

    for path, adapter in run.adapters(state).items():
        np.testing.assert_array_equal(toy.delta(adapter), 0)
        np.testing.assert_array_equal(grads.a[path], 0)
        np.testing.assert_array_equal(grads.b[path], 0)
        assert np.all(grads.e[path] != 0)


def test_a_masked_triplet_gets_no_gradient_but_for_its_value(key):
    run = CONFIG.method(STEPS)
    state = run.init(key, toy.kernels(), None)
    e = {path: jnp.asarray([0.5, 0, -1, 0]) for path in toy.SHAPES}

    grads = toy.gradients(run, state._replace(params=state.params._replace(e=e)))

    for path in toy.SHAPES:
        rows = np.any(grads.a[path] != 0, axis=0)
        columns = np.any(grads.b[path] != 0, axis=1)
        np.testing.assert_array_equal(rows, [True, False, True, False])
        np.testing.assert_array_equal(columns, [True, False, True, False])
        assert np.all(grads.e[path] != 0)


def test_the_scale_is_that_of_the_first_rank(key):
    state = CONFIG.method(STEPS).init(key, toy.kernels(), None)

    got = {x.scale for x in CONFIG.method(STEPS).adapters(state).values()}

    assert got == {8 / (4 + 1e-5)}
    assert pytest.approx(1.999995, abs=1e-9) == 8 / (4 + 1e-5)


def test_a_run_masks_when_it_is_due_and_what_it_masked_may_grow_again(trained):
    _, states = trained
    budgets = [
        adalora.budget(t, STEPS, CONFIG.schedule(STEPS), start=12, end=6)
        for t in range(STEPS)
    ]

    alive = toy.alive(states.params.e)

    assert [t for t, (_, masks) in enumerate(budgets) if masks] == [
        *(7, 14, 21, 28),
        *range(31, 40),
    ]
    for t, (left, masks) in enumerate(budgets):
        assert alive[t] == (left if masks else 12), t


def test_the_last_phase_keeps_the_triplets_it_began_with(trained):
    _, states = trained
    last = STEPS - CONFIG.t_final

    for path, values in states.params.e.items():
        e = np.asarray(values)
        assert np.all((e[last:] != 0) == (e[last] != 0))
        np.testing.assert_array_equal(e[-1] != 0, states.memory.keep[path][-1])
    for before, after in zip(
        *(toy.at(states.memory, t) for t in (last, -1)), strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, before, after)


def test_what_is_exported_is_what_the_model_saw_last(trained):
    run = CONFIG.method(STEPS)
    state = toy.at(trained[1], -1)

    masked, sliced = run.adapters(state), run.finish(state)

    ranks = [sliced[path].rank if path in sliced else 0 for path in toy.SHAPES]
    assert sum(ranks) == 6
    assert len(set(ranks)) > 1
    for path, adapter in masked.items():
        got = toy.delta(sliced[path]) if path in sliced else 0
        np.testing.assert_allclose(got, toy.delta(adapter), atol=1e-6)


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


def test_a_target_of_the_whole_rank_masks_nothing(pair, key):
    run = AdaLora(rank=2, target=2).method(8)
    kernels = {str(i): jnp.zeros((n, m)) for i, (m, n) in enumerate([(2, 3)] * 2)}
    state = State(pair, run.init(key, kernels, None).memory)
    allocate = jax.jit(run.after_step)

    for step in range(8):
        state = allocate(state, state, ours(*GRADIENTS[0]), jnp.int32(step))

    assert {x.rank for x in run.finish(state).values()} == {2}
    jax.tree.map(np.testing.assert_array_equal, state.params, pair)


def test_what_cannot_be_reached_is_refused():
    with pytest.raises(ValueError, match="target is 17"):
        AdaLora(target=17).method(3000)
    with pytest.raises(ValueError, match="steps is 4"):
        AdaLora().method(4)
