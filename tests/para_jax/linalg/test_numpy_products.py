"""Test the NumPy back end on CPU: error on hard factors, threads, no compiler."""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import threading

import jax
import ml_dtypes
import numpy as np
import pytest
import threadpoolctl

import para_jax
from para_jax._pruning import decompose_host, repack_numpy
from para_jax.linalg import numpy_products, threads

RNG = np.random.default_rng(7)
STORED = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


def normal(*shape):
    return RNG.standard_normal(shape)


def spread(d, r, decades):
    """Return orthogonal columns with lengths graded over the given powers of ten."""
    return np.linalg.qr(normal(d, r))[0] * np.logspace(0, -decades, r)


def cancelling(tiny):
    """Return factors of a product `tiny` times as large as they are."""
    x = np.float32(normal(37, 3))
    y = np.float32(normal(3, 29))
    near = np.float32(x + np.float32(tiny) * normal(37, 3))
    return np.concatenate([x, near], axis=1), np.concatenate([y, -y])


# Factors `[m, r]` and `[r, n]`, in the dtype that they are stored in.
HARD = {
    "plain": (normal(37, 5), normal(5, 29)),
    "cancelling to 1e-2": cancelling(1e-2),
    "cancelling to 1e-4": cancelling(1e-4),
    "cancelling to 1e-6": cancelling(1e-6),
    "graded columns": (spread(41, 7, 12), normal(7, 23)),
    "graded against each other": (spread(41, 7, 12), spread(23, 7, 12)[:, ::-1].T),
    "graded in any basis": (spread(41, 7, 4) @ normal(7, 7), normal(7, 23)),
    "equal columns": (np.repeat(normal(31, 2), 2, axis=1), normal(4, 19)),
    "a column of zeros": (normal(31, 3) * [1, 0, 1], normal(3, 19)),
    "all zeros": (normal(31, 3), np.zeros((3, 19))),
    "huge": (1e30 * normal(31, 3), normal(3, 19)),
    "huge by huge": (1e30 * normal(31, 3), 1e30 * normal(3, 19)),
    "tiny": (1e-30 * normal(31, 3), normal(3, 19)),
    "huge by tiny": (1e30 * normal(31, 3), 1e-30 * normal(3, 19)),
    "subnormal": (1e-40 * normal(31, 3), normal(3, 19)),
    "more ranks than inputs": (normal(3, 7), normal(7, 19)),
    "more ranks than outputs": (normal(19, 7), normal(7, 3)),
    "one rank": (normal(31, 1), normal(1, 19)),
}


def exact(a, b):
    """Return the singular values of `a @ b` by NumPy's QR and SVD in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    one, two = np.linalg.qr(a, mode="r"), np.linalg.qr(b.T, mode="r")
    return np.linalg.svd(one @ two.T, compute_uv=False)[: min(len(a), *b.shape)]


def resolved(s, rank):
    return s > 1.01 * rank * np.finfo(np.float32).eps * s[0]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", HARD)
def test_singular_values_are_those_of_float64_however_hard_the_factors(name, order):
    a, b = (np.asarray(x, np.float32, order=order) for x in HARD[name])

    (s,), (left,), (right,) = numpy_products.decompose([a], [b])

    want = exact(a, b)
    keep = resolved(want, len(b))
    np.testing.assert_allclose(s[keep], want[keep], rtol=1e-6)
    assert (s[~keep] <= 1.01 * len(b) * np.finfo(np.float32).eps * want[0]).all()
    product = (a.astype(np.float64) @ left) @ (right @ b.astype(np.float64))
    lost = np.sqrt((want[~keep] ** 2).sum())
    error = np.linalg.norm(product - a.astype(np.float64) @ b.astype(np.float64))
    assert error <= 1e-6 * np.linalg.norm(want) + 1.01 * lost


@pytest.mark.parametrize("dtype", STORED)
def test_every_stored_dtype_is_computed_in_float64(dtype):
    a, b = normal(37, 5).astype(dtype), normal(5, 29).astype(dtype)

    (s,), _, _ = numpy_products.decompose([a], [b])

    np.testing.assert_allclose(s, exact(a, b), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_float64_factors_are_right_where_their_squares_are_not(scale):
    a, b = scale * normal(13, 3), normal(3, 11)

    (s,), _, _ = numpy_products.decompose([a], [b])

    np.testing.assert_allclose(s, exact(a, b), rtol=1e-12)


def test_gram_alone_loses_what_auto_keeps():
    a, b = HARD["cancelling to 1e-4"]
    want = exact(a, b)[:3]

    errors = {
        method: np.abs(
            numpy_products.decompose([a], [b], method=method)[0][0, :3] / want - 1
        )
        for method in ("auto", "qr", "gram")
    }

    assert errors["auto"].max() <= 1e-8
    assert errors["qr"].max() <= 1e-8
    assert errors["gram"].max() > 100 * errors["auto"].max()


@pytest.mark.parametrize("method", ["auto", "qr"])
def test_parts_that_cancel_to_rounding_are_zero(method):
    """The update is `x m y - x m y`: zero, up to rounding."""
    rng = np.random.default_rng(0)
    x, m, y = (rng.normal(size=size) for size in [(13, 4), (4, 4), (4, 11)])
    parent = {
        "zero": para_jax.Adapter(np.hstack([x, x @ m]), np.vstack([m @ y, -y])),
        "other": para_jax.Adapter(x, y),
    }

    child = para_jax.compress(parent, para_jax.Epsilon(1.0), method=method)

    assert {path: x.rank for path, x in child.adapters.items()} == {"other": 4}


@pytest.mark.parametrize("half", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [13, 4096, 16384])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_that_cancel_are_zero_whatever_their_length(dtype, rows, half):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(rows, half)), rng.normal(size=(half, 64))
    zero = np.hstack([a, -a]).astype(dtype), np.vstack([b, b]).astype(dtype)

    (s,), left, right = numpy_products.decompose(*([x] for x in zero))

    assert not s.any()
    assert not left.any()
    assert not right.any()


def test_only_the_kernels_that_need_a_qr_get_one(monkeypatch):
    calls = []
    real = np.linalg.qr
    monkeypatch.setattr(
        np.linalg, "qr", lambda *x, **y: calls.append(1) or real(*x, **y)
    )
    good, bad = np.float32(normal(37, 6)), HARD["cancelling to 1e-4"][0]
    b = np.float32(normal(6, 29))

    numpy_products.decompose([good, bad, good], [b, b, 0 * b])

    assert len(calls) == 1


def test_long_factors_are_those_of_their_blocks(monkeypatch):
    a, b = np.float32(normal(1999, 3)), np.float32(normal(3, 1009))
    monkeypatch.setattr(numpy_products, "_GRAM_BLOCK", 100)
    monkeypatch.setattr(repack_numpy, "_BLOCK", 100)

    for method in ("auto", "qr", "gram"):
        (s,), _, _ = numpy_products.decompose([a], [b], method=method)
        np.testing.assert_allclose(s, exact(a, b), rtol=1e-12)
    child = para_jax.compress({"x": para_jax.Adapter(a, b)}, para_jax.Gamma(1.0))

    x = child.adapters["x"]
    np.testing.assert_allclose(x.a @ x.b, a @ b, atol=1e-4)
    first = x.b[:, :512]  # They determine the sign of a row.
    assert (first.max(-1) >= -first.min(-1)).all()


def test_an_unknown_method_is_refused():
    decompose = numpy_products.decompose.__wrapped__

    with pytest.raises(ValueError, match="Unknown method 'svd': expected 'auto'"):
        decompose([normal(5, 2)], [normal(2, 3)], method="svd")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_does_not_touch_the_kernels_beside_it(bad):
    a, b = np.float32(normal(13, 3)), np.float32(normal(3, 11))
    broken = a.copy()
    broken[4, 1] = bad

    for method in ("auto", "qr", "gram"):
        s, _, _ = numpy_products.decompose([broken, a], [b, b], method=method)
        assert np.isnan(s[0]).all()
        np.testing.assert_allclose(s[1], exact(a, b), rtol=1e-12)


def test_arrays_of_jax_on_one_cpu_are_served_and_traced_or_sharded_ones_are_not():
    x = normal(5, 2)
    one = {"x": para_jax.Adapter(jax.numpy.asarray(x), jax.numpy.asarray(x.T))}

    assert decompose_host.serves(one)
    assert decompose_host.serves({"x": para_jax.Adapter(x, x.T)})


COMPILES_NOTHING = """
import jax, numpy as np, para_jax
rng = np.random.default_rng(0)
a, b = rng.normal(size=(2, 8, 3)), rng.normal(size=(2, 3, 6))
adapters = {"x": para_jax.Adapter(a, b)}
events = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: events.append(name)
)
for form in ("ragged", "padded"):
    para_jax.compress(adapters, para_jax.Gamma(0.5), form=form)
para_jax.family(adapters, [para_jax.Gamma(0.5), para_jax.Epsilon(0.5)])
para_jax.inspect(adapters)
assert not [x for x in events if "compile" in x or "trace" in x], events
print("nothing")
"""


def test_nothing_is_compiled(tmp_path):
    path = os.pathsep.join([str(pathlib.Path.cwd()), *filter(None, sys.path)])

    done = subprocess.run(
        [sys.executable, "-c", COMPILES_NOTHING],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )

    assert done.stdout == "nothing\n", done.stderr[-3000:]


# --- Threads ----------------------------------------------------------------------


def blas_threads():
    found = threadpoolctl.threadpool_info()
    return {x["num_threads"] for x in found if x["user_api"] == "blas"}


def test_results_come_in_order():
    assert list(threads.in_threads(lambda x: x * x, range(100))) == [
        x * x for x in range(100)
    ]


@pytest.mark.parametrize("most", [1, 2])
def test_blas_keeps_one_thread_while_ours_run_and_gets_its_own_back(most):
    with threadpoolctl.threadpool_limits(2):
        inside = list(threads.in_threads(lambda _: blas_threads(), range(3), most=most))
        after = blas_threads()

    assert inside == [{1}] * 3
    assert after == {2}


def test_a_blas_that_a_new_module_brings_is_found(monkeypatch):
    looked = []
    real = threadpoolctl.ThreadpoolController
    monkeypatch.setattr(
        threadpoolctl, "ThreadpoolController", lambda: looked.append(1) or real()
    )

    for name in (None, "one", None, "two", None):
        if name:
            monkeypatch.setitem(sys.modules, f"brings_a_blas_{name}", threads)
        list(threads.in_threads(abs, [1]))

    assert 2 <= len(looked) <= 3  # The first call may find what was there before.


@pytest.mark.parametrize(("kernels", "has_own_threads"), [(16, False), (144, True)])
def test_threads_of_their_own_are_for_large_models(
    monkeypatch, kernels, has_own_threads
):
    """One million parameters, or nine, in pieces that show progress."""
    monkeypatch.setattr(threads, "workers", lambda: 2)
    pieces, seen = [], set()
    real = numpy_products.decompose

    def decompose(*args, **options):
        seen.add(threading.get_ident())
        return real(*args, **options)

    def progress(todo):
        pieces.append(len(todo))
        return todo

    monkeypatch.setattr(numpy_products, "decompose", decompose)
    a = np.float32(normal(kernels, 2048, 16))
    b = np.float32(normal(kernels, 16, 2048))

    found = para_jax.compress(
        {"x": para_jax.Adapter(a, b)}, para_jax.Gamma(0.5), progress=progress
    ).report

    assert (threading.get_ident() not in seen) == has_own_threads
    assert len(pieces) == 2
    assert min(pieces) >= 4
    want = [exact(*pair) for pair in zip(a[:16], b[:16], strict=True)]
    np.testing.assert_allclose([x.sigma for x in found.modules[:16]], want, rtol=1e-9)


def test_calls_that_overlap_give_blas_its_threads_back():
    with threadpoolctl.threadpool_limits(2):
        one, two = (threads.in_threads(lambda x: x, range(3)) for _ in range(2))
        next(one)
        next(two)
        one.close()
        assert blas_threads() == {1}
        two.close()
        assert blas_threads() == {2}


def test_an_error_of_one_item_is_raised_and_ends_the_rest():
    def fail(x):
        raise KeyError(x)

    with (
        threadpoolctl.threadpool_limits(2),
        pytest.raises(KeyError),
    ):
        list(threads.in_threads(fail, range(1000)))


def test_many_calls_side_by_side_give_equal_children():
    adapters = {
        f"layer/{i}": para_jax.Adapter(
            np.float32(normal(31, 4)), np.float32(normal(4, 17))
        )
        for i in range(9)
    }

    def one(_):
        return para_jax.compress(adapters, para_jax.Gamma(0.5)).adapters

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        children = list(pool.map(one, range(8)))

    for child in children[1:]:
        for path, x in children[0].items():
            np.testing.assert_array_equal(child[path].a, x.a)


# --- Families ---------------------------------------------------------------------


def stacked():
    return {
        "mlp": para_jax.Adapter(
            np.float32(normal(5, 13, 4)), np.float32(normal(5, 4, 11))
        ),
        "head": para_jax.Adapter(
            np.float32(normal(7, 3)), np.float32(normal(3, 19)), 2.0
        ),
    }


def test_the_children_of_a_family_share_the_memory_of_the_largest():
    policies = [para_jax.Gamma(x) for x in (0.25, 1.0, 0.5)]

    small, large, middle = para_jax.family(stacked(), policies)

    for child in (small, middle):
        for path, x in child.adapters.items():
            assert np.shares_memory(x.a, large.adapters[path].a)
            assert np.shares_memory(x.b, large.adapters[path].b)
            with pytest.raises(ValueError, match="read-only"):
                x.a[0, 0] = 1


@pytest.mark.parametrize("form", ["padded", "masked"])
def test_a_family_in_other_forms_is_its_members_one_by_one(form):
    adapters, policies = stacked(), [para_jax.Gamma(0.25), para_jax.Gamma(0.75)]

    family = para_jax.family(adapters, policies, form=form)

    for child, policy in zip(family, policies, strict=True):
        alone = para_jax.compress(adapters, policy, form=form)
        for path, x in alone.adapters.items():
            np.testing.assert_array_equal(child.adapters[path].a, x.a)
            np.testing.assert_array_equal(child.adapters[path].b, x.b)
