"""Test the rules of the NumPy back end alone, against NumPy's SVD in float64.

They cover the zero threshold, the range of values, and the meaning of `left` and
`right`.
"""

import jax
import ml_dtypes
import numpy as np
import pytest

from para_jax.linalg import numpy_products

RESOLVED = 2.0**-23
"""What float32 resolves: this much of the largest value, times the rank, is zero."""

METHODS = ["auto", "qr", "gram"]
# Wider than float32, `auto` is QR; else it is by Cholesky factors, where these will do.
WAYS = [*((x, np.float64) for x in METHODS), ("auto", np.float32)]
# Factors as `(m, r, n)`: tall, wide, square, ranks above either side or both.
SHAPES = [
    (13, 3, 7),
    (7, 3, 13),
    (5, 5, 5),
    (3, 7, 13),
    (13, 7, 3),
    (3, 7, 2),
    (2, 1, 3),
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def orthonormal(d, r, seed=0):
    return np.linalg.qr(normal(d, r, seed=seed))[0]


def decomposed(a, b, method):
    """Return `s`, and the new factors `a @ left` and `right @ b`."""
    (s,), (left,), (right,) = numpy_products.decompose([a], [b], method=method)
    return s, np.float64(a) @ left, right @ np.float64(b)


def exact(a, b):
    """Return the singular values of `a @ b`, through QRs: small ones keep digits."""
    one, two = (np.linalg.qr(np.float64(x), mode="r") for x in (a, b.T))
    return np.linalg.svd(one @ two.T, compute_uv=False)[: min(len(a), *b.shape)]


def check(s, new_a, new_b, want, product, rtol):
    """Check values, product, and Eq. 3: both factors have `sqrt(s)` in each column."""
    np.testing.assert_allclose(s, want, rtol=rtol, atol=rtol * want[0])
    atol = rtol * want[0]
    np.testing.assert_allclose(new_a @ new_b, product, rtol=0, atol=atol)
    kept = np.diag(np.where(s > 0, s, 0))
    np.testing.assert_allclose(new_a.T @ new_a, kept, rtol=0, atol=atol)
    np.testing.assert_allclose(new_b @ new_b.T, kept, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("method", "dtype"), WAYS)
def test_factors_of_any_shape_have_the_svd_of_their_product(method, dtype, shape):
    m, r, n = shape
    a, b = normal(m, r).astype(dtype), normal(r, n, seed=1).astype(dtype)

    s, new_a, new_b = decomposed(a, b, method)

    assert s.shape == (min(shape),)
    assert (np.diff(s) <= 0).all()
    # Ranks above a side make columns dependent, whose Gram root knows half the digits.
    rtol = 1e-7 if method == "gram" and r > min(m, n) else 1e-12
    check(s, new_a, new_b, exact(a, b), np.float64(a) @ np.float64(b), rtol)


@pytest.mark.parametrize("of_a", [1e-90, 1.0, 1e90])
@pytest.mark.parametrize("of_b", [1e-90, 1.0, 1e90])
@pytest.mark.parametrize("method", METHODS)
def test_values_scale_with_the_factors_from_1e_minus_180_to_1e180(method, of_a, of_b):
    a, b = normal(13, 3), normal(3, 7, seed=1)
    want = exact(a, b)

    s, new_a, new_b = decomposed(of_a * a, of_b * b, method)

    root = np.sqrt(of_a) * np.sqrt(of_b)
    check(s / (root * root), new_a / root, new_b / root, want, a @ b, 1e-12)


@pytest.mark.parametrize("scale", [1e-90, 1.0, 1e90])
@pytest.mark.parametrize("half", [3, 13, 29])
@pytest.mark.parametrize("method", METHODS)
def test_halves_that_cancel_leave_nothing_at_any_scale(method, half, scale):
    rng = np.random.default_rng(half)
    a, mixing = rng.integers(-9, 10, (61, half)), rng.integers(-3, 4, (half, half))
    b = rng.integers(-9, 10, (half, 37))
    left = np.hstack([a, a @ mixing]) * scale
    right = np.vstack([mixing @ b, -b]) * 1.0

    found = numpy_products.decompose([left], [right], method=method)

    assert not any(x.any() for x in found)


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_that_of_the_parts_not_of_what_is_left(method):
    """Beside `A B - A B`, a part of 1e-19 of their size is below their rounding."""
    a, b = normal(13, 3), normal(3, 7, seed=1)
    u, v = normal(13, 1, seed=2), normal(1, 7, seed=3)

    def with_part(size):
        return np.hstack([a, a, size * u]), np.vstack([b, -b, v])

    clear, *_ = decomposed(*with_part(1e-3), method)
    lost, *_ = decomposed(*with_part(1e-19), method)

    np.testing.assert_allclose(clear[0], exact(1e-3 * u, v)[0], rtol=1e-6)
    assert not lost.any()


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize(("method", "dtype"), WAYS)
def test_what_counts_as_zero_is_the_rank_times_what_float32_resolves(
    method, dtype, rank
):
    limit = (rank + 1) * RESOLVED
    for share, counts in ((0.999, False), (1.001, True)):
        lengths = np.concatenate([np.ones(rank), [limit * share]])
        a = (3 * orthonormal(13, rank + 1) * lengths).astype(dtype)
        b = orthonormal(11, rank + 1, seed=1).T.astype(dtype)

        (s,), (left,), (right,) = numpy_products.decompose([a], [b], method=method)

        np.testing.assert_allclose(s, 3 * lengths, rtol=1e-6)  # Told all the same.
        assert left.any(0).tolist() == right.any(1).tolist() == [True] * rank + [counts]


@pytest.mark.parametrize("graded", ["a", "b", "both"])
@pytest.mark.parametrize(("method", "dtype"), WAYS)
def test_columns_of_unequal_length_lose_no_digits(method, dtype, graded):
    """Their Gram matrix has unit-length columns, so 1e-10 does not sit beside 1."""
    lengths = np.logspace(0, -3 if graded == "both" else -5, 5)
    a = orthonormal(13, 5) * (1 if graded == "b" else lengths)
    b = (orthonormal(11, 5, seed=1) * (1 if graded == "a" else lengths)).T
    a, b = a.astype(dtype), b.astype(dtype)

    s, *_ = decomposed(a, b, method)

    np.testing.assert_allclose(s, exact(a, b), rtol=1e-9)


@pytest.mark.parametrize("rank", [47, 48, 53])
def test_a_gram_product_in_halves_or_whole_is_the_same(rank):
    a, b = np.float32(normal(131, rank)), np.float32(normal(rank, 127, seed=1))

    s, *_ = decomposed(a, b, "gram")

    np.testing.assert_allclose(s, exact(a, b), rtol=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_deficient_factor_has_the_rank_it_has(method, rank):
    a = normal(13, rank) @ normal(rank, 5, seed=1)
    b = normal(5, 7, seed=2)
    want = np.linalg.svd(a @ b, compute_uv=False)[:rank]

    (s,), (left,), (right,) = numpy_products.decompose([a], [b], method=method)

    np.testing.assert_allclose(s[:rank], want, rtol=1e-7)
    assert left.any(0).sum() == right.any(1).sum() == rank
    np.testing.assert_allclose(a @ left @ right @ b, a @ b, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("zero", ["a", "b", "both"])
def test_zero_factors_have_zero_values_and_nothing_that_is_not_finite(method, zero):
    a = normal(13, 3) * (zero == "b")
    b = normal(3, 7) * (zero == "a")

    with np.errstate(all="raise"):
        found = numpy_products.decompose([a], [b], method=method)

    assert not any(x.any() for x in found)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_columns_of_zeros_need_no_qr(dtype, monkeypatch):
    a, b = normal(13, 5) * [1, 0, 1, 0, 1], normal(5, 7, seed=1)
    a, b = a.astype(dtype), b.astype(dtype)
    want = exact(a, b)
    monkeypatch.setattr(np.linalg, "qr", None)

    s, *_ = decomposed(a, b, "auto")

    np.testing.assert_allclose(s[:3], want[:3], rtol=1e-12)
    assert not s[3:].any() or s[3] < 1e-12 * s[0]


@pytest.mark.parametrize("method", METHODS)
def test_kernels_that_share_a_call_have_each_its_own_spectrum(method):
    """Decompose nine of them: more than share a block, of sizes far apart."""
    sizes = 10.0 ** np.arange(-36, 37, 9)
    a = [np.float32(x * normal(13, 3, seed=i)) for i, x in enumerate(sizes)]
    b = [np.float32(normal(3, 7, seed=i + 99)) for i in range(len(sizes))]

    s, left, right = numpy_products.decompose(a, b, method=method)

    for i, pair in enumerate(zip(a, b, strict=True)):
        want = exact(*pair)
        np.testing.assert_allclose(s[i], want, rtol=1e-10)
        one, two = map(np.float64, pair)
        product = one @ left[i] @ right[i] @ two
        np.testing.assert_allclose(product, one @ two, atol=1e-10 * want[0])


def test_nothing_of_jax_is_asked_for():
    """Results are NumPy's, in float64, whatever JAX's precision is."""
    with jax.enable_x64(False):
        found = numpy_products.decompose(
            [np.float32(normal(5, 2))], [np.float32(normal(2, 3))]
        )

    assert {(type(x), x.dtype.name) for x in found} == {(np.ndarray, "float64")}
