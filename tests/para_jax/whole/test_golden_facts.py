"""Test known facts about PARA, independent of our code: one test each, or a few.

The paper's orientation is `delta = B A` with `B [n, r]` and `A [r, m]`; ours is its
transpose, `a = A^T`, `b = B^T`.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax

Epsilon, Gamma, Rank, Threshold = (
    para_jax.Epsilon,
    para_jax.Gamma,
    para_jax.Rank,
    para_jax.Threshold,
)
METHODS = ["qr", "gram"]


def adapter(B, A, scale=1.0):
    return para_jax.Adapter(
        a=np.asarray(A, np.float64).T, b=np.asarray(B, np.float64).T, scale=scale
    )


def diagonal(*sigma):
    return para_jax.Adapter(a=np.diag(np.float64(sigma)), b=np.eye(len(sigma)))


def delta(x):
    a, b = (np.asarray(y, np.float64) for y in (x.a, x.b))
    return x.scale * a @ b


def randomly(rng, shapes):
    return {
        f"layer/{i}": para_jax.Adapter(rng.normal(size=(m, r)), rng.normal(size=(r, n)))
        for i, (m, n, r) in enumerate(shapes)
    }


def ranks(adapters, policy, **options):
    child = para_jax.compress(adapters, policy, **options)
    return tuple(x.kept for x in child.report.modules)


def child_deltas(adapters, policy):
    child = para_jax.compress(adapters, policy, form="masked")
    return {path: delta(x) for path, x in child.adapters.items()}


SHAPES = [(8, 6, 3), (5, 7, 2), (8, 6, 3)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("B", "A", "sigma"),
    [
        pytest.param(
            [[1, 1], [0, 1]],
            [[1, 0], [1, 1]],
            [(3 + 5**0.5) / 2, (3 - 5**0.5) / 2],
            id="G-PARA-1: two by two",
        ),
        pytest.param(
            [[1, 1], [1, -1], [0, 0]],
            [[3, 0, 4, 0], [0, 1, 0, 0]],
            [5 * 2**0.5, 2**0.5],
            id="G-PARA-2: orthogonal factors",
        ),
        pytest.param(
            [[1, 1], [2, 2], [2, 2]],
            [[1, 0, 0], [0, 1, 0]],
            [3 * 2**0.5, 0],
            id="G-PARA-3: rank-deficient",
        ),
        pytest.param(
            [[0, 0], [0, 0], [0, 0]],
            [[1, 0, 0], [0, 1, 0]],
            [0, 0],
            id="G-PARA-3: zero",
        ),
        pytest.param(
            [[1, 2, 3], [4, 5, 6]],
            np.arange(-3, 9).reshape(3, 4),
            [108.1347920775, 2.9777075682],
            id="G-PARA-4: more ranks than rows",
        ),
    ],
)
def test_singular_values_of_small_products_are_as_calculated_by_hand(
    method, B, A, sigma
):
    """Check G-PARA-1 to 4."""
    got = para_jax.decompose({"x": adapter(B, A)}, method=method)["x"]

    np.testing.assert_allclose(got.s, sigma, rtol=1e-9, atol=1e-7 * (sigma[0] or 1))
    product = adapter(B, A).a @ got.left @ got.right @ adapter(B, A).b
    np.testing.assert_allclose(product, (np.array(B) @ np.array(A)).T, atol=1e-10)


def test_the_norms_of_the_rank_one_pieces_are_not_the_singular_values():
    """G-PARA-1: the pieces have norms 1 and 2, the singular values 2.618 and 0.382."""
    report = para_jax.compress(
        {"x": adapter([[1, 1], [0, 1]], [[1, 0], [1, 1]])}, Rank(1)
    ).report

    assert report.threshold == pytest.approx(2.618033988749895, rel=1e-12)


@pytest.mark.parametrize(
    ("policy", "want", "tau", "energy"),
    [
        (Gamma(0.5), (2, 1, 0), 2.0, 65 / 66.25),
        (Epsilon(0.90), (1, 1, 0), 5.0, 61 / 66.25),
        (Epsilon(0.95), (2, 1, 0), 2.0, 65 / 66.25),
        (Epsilon(0.99), (2, 2, 0), 1.0, 66 / 66.25),
        (Epsilon(1.0), (2, 2, 1), 0.5, 1.0),
    ],
    ids=lambda x: x.name if isinstance(x, para_jax.Policy) else "",
)
def test_the_worked_pool_is_cut_where_the_cumulative_energy_says(
    policy, want, tau, energy
):
    """G-PARA-5: cumulative 36, 61, 65, 66, 66.25; an exact zero is never kept."""
    pool = {"a": diagonal(6, 2), "b": diagonal(5, 1), "c": diagonal(0.5, 0)}

    report = para_jax.compress(pool, policy).report

    assert tuple(x.kept for x in report.modules) == want
    assert report.threshold == pytest.approx(tau, rel=1e-12)
    assert report.energy == pytest.approx(energy, abs=1e-12)


def test_the_squared_error_is_the_discarded_energy():
    """Check G-PARA-6."""
    adapters = randomly(np.random.default_rng(6), SHAPES)
    squares = np.sort(
        np.concatenate(
            [
                np.linalg.svd(delta(x), compute_uv=False)[: x.rank] ** 2
                for x in adapters.values()
            ]
        )
    )

    for budget in range(1, 9):
        got = child_deltas(adapters, Rank(budget / 3))
        error = sum(
            np.linalg.norm(delta(x) - got[path]) ** 2 for path, x in adapters.items()
        )
        np.testing.assert_allclose(error, squares[: 8 - budget].sum(), atol=1e-10)


def test_no_other_choice_of_ranks_has_a_smaller_error():
    """G-PARA-7: brute force over every allocation of every budget."""
    adapters = randomly(np.random.default_rng(7), SHAPES)
    sigma = [
        np.linalg.svd(delta(x), compute_uv=False)[: x.rank] for x in adapters.values()
    ]

    for budget in range(9):
        best = min(
            sum((s[k:] ** 2).sum() for s, k in zip(sigma, chosen, strict=True))
            for chosen in itertools.product(*(range(len(s) + 1) for s in sigma))
            if sum(chosen) == budget
        )
        got = child_deltas(adapters, Rank(budget / 3))
        error = sum(
            np.linalg.norm(delta(x) - got[path]) ** 2 for path, x in adapters.items()
        )
        np.testing.assert_allclose(error, best, atol=1e-10)


def test_the_child_is_the_truncated_svd_of_the_block_diagonal_update():
    """Check G-PARA-7."""
    adapters = randomly(np.random.default_rng(8), SHAPES)
    blocks = [delta(x) for x in adapters.values()]
    rows, columns = (np.cumsum([0, *(x.shape[i] for x in blocks)]) for i in (0, 1))
    whole = np.zeros((rows[-1], columns[-1]))
    for i, block in enumerate(blocks):
        whole[rows[i] : rows[i + 1], columns[i] : columns[i + 1]] = block
    u, s, vt = np.linalg.svd(whole)

    got = child_deltas(adapters, Rank(4 / 3))

    want = (u[:, :4] * s[:4]) @ vt[:4]
    for i, path in enumerate(adapters):
        part = want[rows[i] : rows[i + 1], columns[i] : columns[i + 1]]
        np.testing.assert_allclose(got[path], part, atol=1e-12)


def test_the_two_factors_of_a_child_are_balanced():
    """Check G-PARA-8."""
    adapters = randomly(np.random.default_rng(9), SHAPES)

    for path, x in para_jax.compress(adapters, Gamma(1.0)).adapters.items():
        s = np.linalg.svd(delta(adapters[path]), compute_uv=False)[: x.rank]
        np.testing.assert_allclose(x.a.T @ x.a, np.diag(s), atol=1e-10)
        np.testing.assert_allclose(x.b @ x.b.T, np.diag(s), atol=1e-10)


@pytest.mark.parametrize("gauge", ["invertible", "permutation", "graded"])
def test_the_child_depends_on_the_product_of_the_factors_alone(gauge):
    """Check G-PARA-9."""
    rng = np.random.default_rng(10)
    adapters = randomly(rng, SHAPES)
    matrices = {
        "invertible": lambda r: rng.normal(size=(r, r)),
        "permutation": lambda r: np.eye(r)[rng.permutation(r)],
        "graded": lambda r: np.diag(np.geomspace(1e3, 1e-3, r)),
    }
    turned = {}
    for path, x in adapters.items():
        matrix = matrices[gauge](x.rank)
        turned[path] = para_jax.Adapter(x.a @ matrix, np.linalg.solve(matrix, x.b))

    one, other = child_deltas(adapters, Rank(4 / 3)), child_deltas(turned, Rank(4 / 3))

    for path in adapters:
        np.testing.assert_allclose(one[path], other[path], atol=1e-9)


def test_children_nest_and_cutting_twice_is_cutting_once():
    """Check G-PARA-10."""
    adapters = randomly(np.random.default_rng(11), SHAPES)

    smaller = ranks(adapters, Rank(0))
    for budget in range(1, 9):
        larger = ranks(adapters, Rank(budget / 3))
        assert sum(larger) == budget
        assert all(x <= y for x, y in zip(smaller, larger, strict=True))
        smaller = larger
    six = para_jax.compress(adapters, Rank(2), form="masked").adapters
    three = child_deltas(adapters, Rank(1))
    for path, x in child_deltas(six, Rank(1)).items():
        np.testing.assert_allclose(x, three[path], atol=1e-10)
    for path, x in child_deltas(adapters, Gamma(1.0)).items():
        np.testing.assert_allclose(x, delta(adapters[path]), atol=1e-10)


def test_a_common_scale_moves_the_threshold_and_one_scale_moves_the_ranks():
    """Check G-PARA-11."""

    def pool(x, y):
        return {
            "x": adapter(np.diag([6.0, 2]), np.eye(2), x),
            "y": adapter(np.diag([5.0, 1]), np.eye(2), y),
        }

    before = para_jax.compress(pool(1.0, 1.0), Rank(1.5)).report
    common = para_jax.compress(pool(7.0, 7.0), Rank(1.5)).report

    assert common.threshold == pytest.approx(7 * before.threshold, rel=1e-12)
    assert (
        ranks(pool(7.0, 7.0), Rank(1.5)) == ranks(pool(1.0, 1.0), Rank(1.5)) == (2, 1)
    )
    assert ranks(pool(1.0, 7.0), Rank(1.5)) == (1, 2)
    assert ranks(pool(1.0, -7.0), Rank(1.5)) == (1, 2)


@pytest.mark.parametrize("method", METHODS)
def test_graded_columns_keep_all_their_singular_values_in_single_precision(method):
    """G-PARA-12: 768 x 16, columns scaled 1 to 1e-5."""
    rng = np.random.default_rng(12)
    b = (rng.normal(size=(768, 16)) * np.logspace(0, -5, 16)).astype(np.float32)
    a = rng.normal(size=(16, 768)).astype(np.float32)
    want = np.linalg.svd(b.astype(np.float64) @ a.astype(np.float64), compute_uv=False)

    with jax.enable_x64(False):
        model = {"x": para_jax.Adapter(a=a.T, b=b.T)}
        got = para_jax.decompose(model, method=method)["x"].s

    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want[:16], rtol=5e-6)


def test_storage_in_bfloat16_costs_a_thousandth():
    """Check G-PARA-12."""
    rng = np.random.default_rng(13)
    x = para_jax.Adapter(rng.normal(size=(96, 8)), rng.normal(size=(8, 64)))
    half = para_jax.Adapter(*(jnp.asarray(y, jnp.bfloat16) for y in (x.a, x.b)))

    got = para_jax.decompose({"x": half})["x"].s

    want = np.linalg.svd(delta(x), compute_uv=False)[:8]
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_epsilon_one_keeps_everything_even_in_single_precision():
    """G-PARA-13: a running float32 sum may never reach the total."""
    rng = np.random.default_rng(14)
    s = -np.sort(-(rng.random((625, 16)).astype(np.float32) ** 4) - 1e-3)
    squares = np.sort(s.ravel())[::-1] ** 2
    assert np.cumsum(squares)[-1] != squares.sum()  # The trap is there.

    with jax.enable_x64(False):
        spectrum = para_jax.Spectrum(
            s=jnp.asarray(s),
            left=jnp.zeros((625, 16, 16)),
            right=jnp.zeros((625, 16, 16)),
            shape=(64, 48),
            dtype="float32",
            nominal=16,
        )
        kept = para_jax.masks({"x": spectrum}, Epsilon(1.0))["x"]

    assert bool(kept.all())


PEFT_SPECTRUM = [6.0, 5.0, 2.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("epsilon", "want"),
    [
        (0.5, 1),
        (0.9, 2),
        (0.92, 2),
        (0.95, 3),
        (0.98, 3),
        (0.99, 4),
        (0.995, 4),
        (1.0, 5),
    ],
)
def test_on_one_layer_epsilon_is_the_rule_of_peft(epsilon, want):
    """G-PARA-14: the stated cut-offs, and PEFT's own function if it is installed."""
    assert ranks({"x": diagonal(*PEFT_SPECTRUM)}, Epsilon(epsilon)) == (want,)


def test_on_one_layer_epsilon_agrees_with_the_code_of_peft():
    """Check G-PARA-14."""
    torch = pytest.importorskip("torch")
    conversion = pytest.importorskip("peft.tuners.lora.conversion")
    rng = np.random.default_rng(15)

    for epsilon in (0.3, 0.8, 0.95, 0.999):
        s = -np.sort(-rng.random(11))
        count = conversion._find_cutoff_index(torch.from_numpy(s), epsilon)
        assert ranks({"x": diagonal(*s)}, Epsilon(epsilon)) == (count,)
    ties = [3.0, 3.0, 3.0, 3.0]
    assert conversion._find_cutoff_index(torch.tensor(ties), 0.26) == 2
    assert ranks({"x": diagonal(*ties)}, Epsilon(0.26)) == (4,)


def test_a_converged_parent_reveals_the_ranks_of_its_teacher():
    """G-PARA-15: teachers of ranks 3, 1 and 2; isotropic inputs; squared loss."""
    true = (3, 1, 2)
    rng = np.random.default_rng(16)
    teachers = []
    for k in true:
        u, _ = np.linalg.qr(rng.normal(size=(9, k)))
        v, _ = np.linalg.qr(rng.normal(size=(7, k)))
        teachers.append(u * np.linspace(2, 1, k) @ v.T)
    target = jnp.asarray(np.stack(teachers))
    start = para_jax.Adapter(
        a=jnp.asarray(rng.normal(size=(3, 9, 4)) / 3), b=jnp.zeros((3, 4, 7))
    )

    def loss(x):  # The expectation over isotropic inputs.
        return 0.5 * jnp.sum((x.a @ x.b - target) ** 2)

    def step(x, _):
        return jax.tree.map(lambda p, g: p - 0.1 * g, x, jax.grad(loss)(x)), None

    parent, _ = jax.jit(lambda x: jax.lax.scan(step, x, length=3000))(start)
    assert float(loss(parent)) < 1e-10
    adapters = {"x": parent}

    def error(policy):
        child = para_jax.compress(adapters, policy, form="masked").adapters["x"]
        return 0.5 * np.sum((delta(child) - np.asarray(target)) ** 2)

    assert ranks(adapters, Rank(2)) == true
    assert error(Rank(2)) < 1e-9
    assert ranks(adapters, Rank(2, scope="local")) == (2, 1, 2)  # One has no second.
    np.testing.assert_allclose(
        error(Rank(2, scope="local")), 0.5, rtol=1e-3
    )  # 1^2 / 2.


def test_the_largest_singular_value_is_not_always_the_one_that_the_data_needs():
    """G-PARA-16: DW = diag(2, 1), inputs of covariance diag(.01, 1)."""
    covariance = np.diag([0.01, 1.0])

    def loss(kept):
        rest = np.diag([2.0, 1.0]) - kept
        return 0.5 * np.trace(rest.T @ covariance @ rest)

    kept = child_deltas({"x": diagonal(2, 1)}, Rank(1))["x"]

    np.testing.assert_allclose(kept, np.diag([2.0, 0.0]), atol=1e-14)
    assert loss(kept) == pytest.approx(0.5)
    assert loss(np.diag([0.0, 1.0])) == pytest.approx(0.02)


def test_a_child_has_scale_one_and_no_module_of_rank_zero():
    """Check G-PARA-17, except for the part on files."""
    pool = {"a": diagonal(6, 2), "b": diagonal(5, 1), "c": diagonal(0.5, 0)}

    child = para_jax.compress(pool, Gamma(0.5))

    assert {path: (x.rank, x.scale) for path, x in child.adapters.items()} == {
        "a": (2, 1.0),
        "b": (1, 1.0),
    }
    assert child.absent == {"c": (2, 2)}
