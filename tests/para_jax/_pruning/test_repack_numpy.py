"""Test children made by NumPy alone against NumPy's truncated SVD in float64."""

import ml_dtypes
import numpy as np
import pytest

import para_jax
from para_jax import Adapter, Gamma, Rank
from para_jax._pruning import repack_numpy

SIGNING = 512
"""Of this many first entries, the largest in magnitude is positive."""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def dense(adapter):
    return adapter.scale * np.float64(adapter.a) @ np.float64(adapter.b)


def truncated(product, rank):
    u, s, vt = np.linalg.svd(product, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def positive(b):
    """Test for each row whether the first largest of its first entries is positive."""
    first = np.float64(b)[:, :SIGNING]
    return first[np.arange(len(first)), np.abs(first).argmax(-1)] > 0


@pytest.mark.parametrize("shape", [(13, 3, 7), (7, 3, 13), (5, 5, 5), (3, 7, 13)])
@pytest.mark.parametrize("scale", [1.0, -2.5, 1e-90, 1e90])
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_child_is_the_truncated_svd_of_its_parent(kept, scale, shape):
    m, r, n = shape
    parent = Adapter(normal(m, r), normal(r, n, seed=1), scale)

    child = para_jax.compress({"x": parent}, Rank(kept)).adapters["x"]

    assert (child.a.shape, child.b.shape) == ((m, kept), (kept, n))
    unit = dense(parent) / abs(scale)
    got = child.scale * child.a @ child.b / abs(scale)
    np.testing.assert_allclose(got, truncated(unit, kept), atol=1e-12)
    squares = np.diag(np.linalg.svd(unit, compute_uv=False)[:kept])
    root = np.sqrt(abs(scale))
    one, two = child.a / root, child.b / root
    np.testing.assert_allclose(one.T @ one, squares, atol=1e-11)
    np.testing.assert_allclose(two @ two.T, squares, atol=1e-11)
    assert positive(child.b).all()


@pytest.mark.parametrize("of_a", [1e-90, 1e90])
@pytest.mark.parametrize("of_b", [1e-90, 1e90])
def test_factors_of_any_size_have_a_balanced_child(of_a, of_b):
    a, b = normal(13, 3), normal(3, 7, seed=1)

    child = para_jax.compress({"x": Adapter(of_a * a, of_b * b)}, Rank(2)).adapters["x"]

    root = np.sqrt(of_a) * np.sqrt(of_b)
    got = (child.a / root) @ (child.b / root)
    np.testing.assert_allclose(got, truncated(a @ b, 2), atol=1e-12)
    np.testing.assert_allclose(
        np.linalg.norm(child.a, axis=0), np.linalg.norm(child.b, axis=1), rtol=1e-12
    )


@pytest.mark.parametrize("order", ["C", "F"])
def test_each_kernel_of_a_stack_has_its_own_child(order):
    a = np.asarray(normal(2, 3, 13, 5), order=order)
    b = np.asarray(normal(2, 3, 5, 7, seed=1), order=order)

    child = para_jax.compress({"mlp": Adapter(a, b, 0.5)}, Gamma(0.5)).adapters

    products = {(i, j): 0.5 * a[i, j] @ b[i, j] for i in range(2) for j in range(3)}
    s = {at: np.linalg.svd(x, compute_uv=False)[:5] for at, x in products.items()}
    least = np.sort(np.concatenate([*s.values()]))[::-1][14]  # Half of 30 ranks.
    ranks = {f"mlp/{i}/{j}": int((x >= least).sum()) for (i, j), x in s.items()}
    assert {path: x.rank for path, x in child.items()} == {
        path: rank for path, rank in ranks.items() if rank
    }
    for path, x in child.items():
        at = tuple(map(int, path.split("/")[1:]))
        np.testing.assert_allclose(
            dense(x), truncated(products[at], ranks[path]), atol=1e-12
        )


@pytest.mark.parametrize("sign", [1, -1])
def test_the_first_entries_alone_say_which_sign_a_row_has(sign):
    """In a row of 521, 3 is the largest of the first 512, and -5 follows them."""
    row = np.zeros((1, 521))
    row[0, [7, 500, 519]] = 3, -2, -5
    parent = {"x": Adapter(sign * normal(7, 1), sign * row)}

    child = para_jax.compress(parent, Gamma(1.0)).adapters["x"]

    assert np.sign(child.b[0, [7, 500, 519]]).tolist() == [1, -1, -1]
    np.testing.assert_allclose(child.a @ child.b, dense(parent["x"]), atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_of_entries_that_are_equal_but_for_their_sign_the_first_is_positive(sign):
    """A row and its reverse with the other sign are equal: max = -min."""
    row = sign * np.array([[0.0, 1.0, -4.0, 2.0, -2.0, 4.0, -1.0]])
    parent = {"x": Adapter(normal(5, 1), row)}

    child = para_jax.compress(parent, Gamma(1.0)).adapters["x"]

    assert np.sign(child.b[0]).tolist() == [0, -1, 1, -1, 1, -1, 1]
    np.testing.assert_allclose(child.a @ child.b, dense(parent["x"]), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_what_is_stored_is_the_exact_child_rounded_once(dtype):
    """Compute the exact child from the same numbers, stored in float64."""
    a, b = normal(13, 3).astype(dtype), normal(3, 7, seed=1).astype(dtype)
    wide = {"x": Adapter(np.float64(a), np.float64(b))}

    child = para_jax.compress({"x": Adapter(a, b)}, Rank(2)).adapters["x"]
    exact = para_jax.compress(wide, Rank(2)).adapters["x"]

    np.testing.assert_allclose(
        dense(exact), truncated(np.float64(a) @ b, 2), atol=1e-12
    )
    half = float(ml_dtypes.finfo(dtype).eps) / 2 * (1 + 1e-5)
    for got, want in ((child.a, exact.a), (child.b, exact.b)):
        assert got.dtype == dtype
        assert (np.abs(np.float64(got) - want) <= half * np.abs(want)).all()


def test_a_deficient_parent_at_full_budget_loses_what_it_does_not_have():
    a = normal(13, 2) @ normal(2, 5, seed=1)
    parents = {
        "x": Adapter(a, normal(5, 7, seed=2)),
        "zero": Adapter(a, np.zeros((5, 7))),
    }

    child = para_jax.compress(parents, Gamma(1.0)).adapters

    assert {path: x.rank for path, x in child.items()} == {"x": 2}
    np.testing.assert_allclose(dense(child["x"]), dense(parents["x"]), atol=1e-11)


def test_the_sign_of_a_row_makes_no_negative_zeros():
    """Where a column of `b` is zero, so is the child's, whatever sign its row has."""
    b = np.float32(normal(4, 11, seed=1))
    b[:, [0, 5]] = 0
    parents = {
        sign: {"x": Adapter(np.float32(sign * normal(7, 4)), b)} for sign in (1, -1)
    }

    for parent in parents.values():
        child = para_jax.compress(parent, Gamma(1.0)).adapters["x"]
        assert not child.b[:, [0, 5]].any()
        assert not np.signbit(child.b[:, [0, 5]]).any()


def test_signs_hold_for_all_blocks_of_a_row():
    """Rows of 1,201 numbers in blocks of 512: the first alone settles the signs."""
    a, b = normal(13, 3), normal(3, 1201, seed=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repack_numpy, "_BLOCK", 1)
        child = para_jax.compress({"x": Adapter(a, b)}, Gamma(1.0)).adapters["x"]

    np.testing.assert_allclose(child.a @ child.b, a @ b, atol=1e-12)
    assert positive(child.b).all()
