"""Test the SVD by rotations. The oracle is NumPy's, in float64."""

import jax
import numpy as np
import pytest

from para_jax.linalg import jacobi

RANKS = [1, 2, 3, 8, 16, 17, 40]


def draw(kind, n, m=None):
    x = np.random.default_rng(n).normal(size=(6, m or n, n))
    if kind == "graded":
        x = x * np.geomspace(1, 1e-6, n)
    if kind == "rising":
        x = x * np.geomspace(1e-6, 1, n)[:, None]
    if kind == "equal":
        x = np.linalg.qr(x)[0]
    if kind == "deficient":
        x = x[..., : n // 2 + 1] @ x[:, : n // 2 + 1]
    if kind == "zeros":
        x[..., ::2] = 0
    if kind == "large":
        x = x * np.array([1e30, 1e-30, 1, 0, 1e20, 1e-20])[:, None, None]
    return np.float32(x)


def check(x, bound=2e-6):
    u, s, vt = jax.device_get(jax.jit(jacobi.svd)(x))
    want = np.linalg.svd(np.float64(x), compute_uv=False)
    top = want[:, :1]
    assert (np.abs(s - want) <= bound * top).all()
    assert (np.diff(s) <= 0).all()
    error = np.abs((np.float64(u) * s[:, None]) @ vt - x)
    assert (error <= bound * top[..., None]).all()
    np.testing.assert_allclose(vt @ vt.mT - np.eye(x.shape[-1]), 0, atol=1e-5)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    "kind", ["ordinary", "graded", "rising", "equal", "deficient", "zeros", "large"]
)
def test_singular_values_and_vectors_are_right(kind, rank):
    check(draw(kind, rank))


def test_a_matrix_may_be_tall():
    check(draw("ordinary", 5, 9))


def test_one_that_is_not_finite_becomes_nan_and_harms_no_other():
    x = draw("ordinary", 8)
    x[1, 2, 3], x[4, 0, 0] = np.inf, np.nan

    u, s, _ = jax.device_get(jax.jit(jacobi.svd)(x))

    good = [0, 2, 3, 5]
    want = np.linalg.svd(np.float64(x[good]), compute_uv=False)
    assert np.isnan(s[[1, 4]]).all()
    assert np.isnan(u[[1, 4]]).all()
    np.testing.assert_allclose(s[good], want, atol=1e-5)
