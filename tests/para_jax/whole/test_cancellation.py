"""Test zero updates from nonzero factors, on both back ends.

`[A, A M] @ [M B; -B]` is `A M B - A M B`. Whole numbers keep both halves exact in every
dtype, so any nonzero result is the computation's own rounding.
"""

import functools

import jax
import numpy as np
import pytest

import para_jax
from para_jax import Adapter, Epsilon

M, N, HALF = 13, 11, 4
ALONE, MIXED = np.eye(HALF), np.random.default_rng(3).integers(-3, 4, (HALF, HALF))


def halves(mixing, scale=1.0, dtype=np.float64):
    """Return factors of rank 8 with an exactly zero product."""
    rng = np.random.default_rng(5)
    a, b = rng.integers(-9, 10, (M, HALF)), rng.integers(-9, 10, (HALF, N))
    left, right = np.hstack([a, a @ mixing]), np.vstack([mixing @ b, -b])
    assert not (left @ right).any()
    return (scale * left).astype(dtype), (scale * right).astype(dtype)


def plain(dtype=np.float64):
    rng = np.random.default_rng(7)
    return rng.normal(size=(M, 3)).astype(dtype), rng.normal(size=(3, N)).astype(dtype)


@functools.partial(jax.jit, static_argnames=("method",))
def traced(adapters, method):
    spectra = para_jax.decompose(adapters, method=method)
    return spectra, para_jax.masks(spectra, Epsilon(1.0))


@pytest.mark.parametrize("scale", [1e-70, 2.0**-60, 1.0, 2.0**60, 1e70])
@pytest.mark.parametrize("mixing", [ALONE, MIXED], ids=["alone", "mixed"])
@pytest.mark.parametrize("method", ["auto", "qr", "gram"])
def test_compress_keeps_nothing_of_an_update_that_cancels(method, mixing, scale):
    adapters = {"zero": Adapter(*halves(mixing, scale))}

    child = para_jax.compress(adapters, Epsilon(1.0), method=method)

    assert child.adapters == {}
    assert child.report.kept_rank == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("method", ["auto", "qr", "gram"])
def test_compress_keeps_nothing_of_one_that_cancels_in_a_narrow_dtype(method, dtype):
    adapters = {"zero": Adapter(*halves(MIXED, 1, dtype)), "x": Adapter(*plain(dtype))}

    child = para_jax.compress(adapters, Epsilon(1.0), method=method)

    assert {path: x.rank for path, x in child.adapters.items()} == {"x": 3}


def test_an_inspection_finds_no_rank_in_an_update_that_cancels():
    found = para_jax.inspect({"zero": Adapter(*halves(MIXED)), "x": Adapter(*plain())})

    sigma = {x.path: x.sigma for x in found.report.modules}
    assert not sigma["zero"].any()
    assert sigma["x"].all()


@pytest.mark.parametrize("method", ["auto", "qr", "gram"])
@pytest.mark.parametrize(
    "precision",
    ["float64", pytest.param("float32", marks=pytest.mark.user_defaults)],
)
def test_a_traced_program_keeps_nothing_of_an_update_that_cancels(precision, method):
    adapters = {
        "zero": Adapter(*halves(MIXED, 1, np.float32)),
        "x": Adapter(*plain(np.float32)),
    }

    spectra, kept = traced(adapters, method)

    assert spectra["x"].s.dtype == precision
    assert {path: int(x.sum()) for path, x in kept.items()} == {"zero": 0, "x": 3}
    for part in (spectra["zero"].s, spectra["zero"].left, spectra["zero"].right):
        assert not np.any(part)


def test_what_is_left_of_a_product_that_cancels_in_part_is_kept():
    """`A B - A (B - C)` leaves `A C`, a millionth of its halves."""
    a, b = plain()
    c = 1e-6 * np.random.default_rng(11).normal(size=b.shape)
    adapters = {"x": Adapter(np.hstack([a, a]), np.vstack([b, c - b]))}
    stored = adapters["x"].a @ adapters["x"].b

    child = para_jax.compress(adapters, Epsilon(1.0))

    want = np.linalg.svd(stored, compute_uv=False)[:3]
    (module,) = child.report.modules
    assert module.kept == 3
    np.testing.assert_allclose(module.sigma[:3], want, rtol=1e-8)
