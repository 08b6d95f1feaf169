"""Test Gram matrices if they are exact enough, and QR otherwise.

This is `auto` as on a GPU, computed here. The oracle is NumPy's float64 QR and SVD.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from para_jax.linalg import cores, products
from tests import adversarial, reference

CASES = adversarial.cases()
DOUBTFUL = ["cancelling/1e-6", "parallel", "deficient/a", "deficient/both"]
SAFE = ["ordinary", "graded/both", "deficient/zeros", "zero", "outlier", "range/large"]


@pytest.fixture
def qrs(monkeypatch):
    """Return a list that grows by one per computed QR."""
    done = []
    qr_r = products.factorize.qr_r

    def counted(x):
        jax.debug.callback(lambda _: done.append(1), x[0, 0, 0])
        return qr_r(x)

    monkeypatch.setattr(products.factorize, "qr_r", counted)
    yield done
    # Later tests must not find traces made with `counted`.
    jax.clear_caches()


def factors(name):
    a, b = zip(*((x.a, x.b) for x in CASES[name].values()), strict=True)
    return [jnp.asarray(x) for x in a], [jnp.asarray(x) for x in b]


def run(function, *args):
    result = jax.block_until_ready(jax.jit(function)(*args))
    jax.effects_barrier()
    return result


def check(core, name):
    for s, kernel in zip(core.s, reference.kernels(CASES[name]).values(), strict=True):
        want = np.where(kernel.s > 2 * kernel.floor, kernel.s, 0)
        got = np.where(want > 0, s[: len(want)], 0)
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("name", [*SAFE, *DOUBTFUL])
@pytest.mark.slow
def test_a_qr_is_computed_where_gram_matrices_lose_digits_alone(name, qrs):
    a, b = factors(name)

    core = run(products.checked, a, b)

    check(core, name)
    kernels = sum(x.modules for x in CASES[name].values())
    assert len(qrs) == (2 * kernels if name in DOUBTFUL else 0)


@pytest.mark.parametrize("name", ["ordinary", "cancelling/1e-6"])
def test_under_vmap_it_is_still_computed_there_alone(name, qrs):
    a, b = factors(name)
    halves = [jnp.stack([x, 0.5 * x]) for x in a]
    mapped = jax.vmap(jax.vmap(products.checked, (0, None)), (None, 0))

    core = run(mapped, halves, [x[None] for x in b])

    assert core.left.shape == (1, 2, 3, 8, 8)
    check(jax.tree.map(lambda x: x[0, 0], core), name)
    check(jax.tree.map(lambda x: x[0, 1], core)._replace(s=2 * core.s[0, 1]), name)
    assert len(qrs) == (2 * 2 * 3 if name in DOUBTFUL else 0)


def test_one_that_is_mapped_over_needs_no_stack():
    a, b = factors("ordinary")

    core = run(jax.vmap(lambda x, y: products.checked([x], [y])), a[0], b[0])

    for i in range(2):
        want = reference.kernels(CASES["ordinary"])["x", i].s
        np.testing.assert_allclose(core.s[i, 0], want, rtol=1e-12)


def test_what_is_not_finite_is_nan_and_harms_no_other():
    a, b = factors("ordinary")
    a[0] = a[0].at[1, 3, 2].set(jnp.inf)

    core = run(products.checked, a, b)

    assert np.isnan(core.s[1]).all()
    for row, kernel in ((0, ("x", 0)), (2, ("y",))):
        want = reference.kernels(CASES["ordinary"])[kernel].s
        np.testing.assert_allclose(core.s[row], want, rtol=1e-12)


# Long columns round more often, and a low rank has few to share it.
@pytest.mark.parametrize(
    ("way", "rows", "half"),
    [("qr", 13, 3), ("gram", 13, 3), ("checked", 13, 3)]
    + [(way, 4096, half) for way in ("qr", "checked") for half in (1, 2)],
)
def test_what_cancels_to_rounding_is_zero(way, rows, half):
    x, y = np.random.default_rng(0).normal(size=(2, 50, rows, half)).astype(np.float32)
    a, b = np.concatenate([x, -x], axis=2), np.concatenate([y, y], axis=2).mT

    core = run(
        functools.partial(cores.cores, way=way),
        [[jnp.asarray(a)]],
        [[jnp.asarray(b)]],
        jnp.ones(50),
    )

    assert not any(np.any(part) for part in core)


def test_the_derivative_is_that_of_the_singular_values():
    # d s_i / d (a b) = u_i v_i^T.
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 8, 3)), rng.normal(size=(2, 3, 6))

    def total(a):
        return products.checked([a[None]], [jnp.asarray(b[:1])]).s.sum()

    one = run(jax.grad(total), jnp.asarray(a[0]))
    both = run(jax.vmap(jax.grad(total)), jnp.asarray(a))

    for got, x in ((one, a[0]), (both[0], a[0]), (both[1], a[1])):
        u, _, vt = np.linalg.svd(x @ b[0], full_matrices=False)
        np.testing.assert_allclose(got, u[:, :3] @ vt[:3] @ b[0].T, atol=1e-8)
