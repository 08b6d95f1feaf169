"""Test float64 inside of programs without it: NVIDIA GPUs' way, computed on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from para_jax.linalg import cores

pytestmark = pytest.mark.user_defaults  # JAX's default precision, float32.
LARGEST = float(np.finfo(np.float32).max)


def factors(rank=5, scale_a=1.0, scale_b=1.0, kernels=3):
    rng = np.random.default_rng(rank)
    a = rng.normal(size=(kernels, 50, rank)) * scale_a
    b = rng.normal(size=(kernels, rank, 40)) * scale_b
    return a.astype(np.float32), b.astype(np.float32)


def rounded(a, b, scale):
    return cores.in_float64([a], [b], scale)


def values(a, b, scale):
    wide = scale[:, None, None] * (np.float64(a) @ np.float64(b))
    return np.linalg.svd(wide, compute_uv=False)[:, : a.shape[-1]]


@pytest.mark.parametrize("rank", [1, 5, 16, 40])
@pytest.mark.parametrize(
    ("scale_a", "scale_b"), [(1, 1), (1e-30, 1e30), (1e25, 1e-20), (1e-12, 1e-12)]
)
def test_values_and_factors_are_numpys_to_a_rounding_of_float32(rank, scale_a, scale_b):
    a, b = factors(rank, scale_a, scale_b)
    scale = np.float32([2, -1, 0.5])

    core = jax.jit(rounded)(a, b, scale)

    assert {x.dtype.name for x in core} == {"float32"}
    np.testing.assert_allclose(core.s, values(a, b, scale), rtol=2e-7)
    left, right = np.float64(a) @ core.left, core.right @ np.float64(b)
    want = scale[:, None, None] * (np.float64(a) @ np.float64(b))
    top = values(a, b, scale)[:, :1, None]
    np.testing.assert_allclose(left @ right / top, want / top, atol=1e-6)


def test_values_beyond_the_range_are_its_ends_and_nan_stays():
    a, b = factors(scale_a=1e30, scale_b=1e30)
    a[1] *= np.float32(1e-38)
    b[1] *= np.float32(1e-38)
    a[2, 0, 0] = np.nan

    s = np.asarray(jax.jit(rounded)(a, b, np.ones(3, np.float32)).s)

    assert (s[0] == np.float32(LARGEST)).all()
    np.testing.assert_allclose(s[1], values(a[1:2], b[1:2], np.ones(1))[0], rtol=1e-6)
    assert np.isnan(s[2]).all()


@pytest.mark.parametrize("mapped", [False, True])
def test_graded_columns_keep_what_float32_would_lose(mapped):
    a, b = factors(8)
    a *= np.float32(10.0) ** -np.arange(8)

    function = jax.vmap(rounded) if mapped else rounded
    args = a, b, np.ones(3, np.float32)
    found = jax.jit(function)(*(x[None] for x in args) if mapped else args)

    s = np.asarray(found.s).reshape(3, 8)
    want = values(*args)
    kept = want > 8 * np.finfo(np.float32).eps * want[:, :1]
    np.testing.assert_allclose(s[kept], want[kept], rtol=1e-6)


@pytest.mark.parametrize("rank", [5, 40])
def test_a_derivative_is_that_of_the_singular_values(rank):
    a, b = factors(rank, kernels=1)
    scale = jnp.ones(1)

    slope = jax.jit(jax.grad(lambda a: rounded(a, b, scale).s[0, 0]))(a)

    u, _, vt = np.linalg.svd(np.float64(a[0]) @ np.float64(b[0]))
    # d s_1 / d a = u_1 (b v_1)^T.
    want = np.outer(u[:, 0], np.float64(b[0]) @ vt[0])
    np.testing.assert_allclose(slope[0], want, rtol=1e-3, atol=1e-4 * abs(want).max())
