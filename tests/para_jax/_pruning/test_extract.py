"""Test adapters from full weights (PhLoRA), and PiSSA or MiLoRA adapters made plain."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

import para_jax


def delta(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * a @ b


def pissa(weight, rank, *, scale=1.0, last=False):
    """Return PiSSA's (or MiLoRA's, `last`) factors of `weight`, by definition."""
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    chosen = slice(-rank, None) if last else slice(rank)
    root = np.sqrt(s[chosen] / scale)
    return para_jax.Adapter(
        a=u[:, chosen] * root, b=root[:, None] * vt[chosen], scale=scale
    )


@pytest.mark.parametrize(("rank", "energy"), [(1, 9 / 14), (2, 13 / 14), (3, 1.0)])
def test_the_energy_of_diag_3_2_1(rank, energy):
    base = np.arange(9.0).reshape(3, 3)

    got = para_jax.extract({"x": base}, {"x": base + np.diag([3.0, 2, 1])}, rank=rank)

    assert got.energy == {"x": pytest.approx(energy, abs=1e-12)}
    want = np.diag([3.0, 2, 1][:rank] + [0] * (3 - rank))
    np.testing.assert_allclose(delta(got.adapters["x"]), want, atol=1e-12)
    assert got.adapters["x"].scale == 1.0


@pytest.mark.parametrize(
    "shape", [(8, 6), (6, 8), (20, 40), (40, 20), (33, 33), (2, 5, 7)]
)
def test_the_error_is_the_discarded_energy(shape):
    rng = np.random.default_rng(0)
    base, change = rng.normal(size=shape), rng.normal(size=shape)

    got = para_jax.extract({"x": base}, {"x": base + change}, rank=3)

    s = np.linalg.svd(change, compute_uv=False)
    error = np.linalg.norm(change - delta(got.adapters["x"])) ** 2
    np.testing.assert_allclose(error, (s[..., 3:] ** 2).sum(), rtol=1e-9)
    kept = (s[..., :3] ** 2).sum() / (s**2).sum()
    assert got.energy["x"] == pytest.approx(kept, abs=1e-12)
    a, b = got.adapters["x"].a, got.adapters["x"].b
    assert (a.shape, b.shape) == ((*shape[:-1], 3), (*shape[:-2], 3, shape[-1]))
    balance = np.zeros((*shape[:-2], 3, 3))
    balance[..., range(3), range(3)] = s[..., :3]
    np.testing.assert_allclose(a.mT @ a, balance, atol=1e-10)
    np.testing.assert_allclose(b @ b.mT, balance, atol=1e-10)


def test_a_merged_adapter_is_found_again():
    rng = np.random.default_rng(1)
    base, a, b = (
        rng.normal(size=(8, 6)),
        rng.normal(size=(8, 2)),
        rng.normal(size=(2, 6)),
    )

    got = para_jax.extract({"x": base}, {"x": base + 2 * a @ b}, rank=4)

    np.testing.assert_allclose(delta(got.adapters["x"]), 2 * a @ b, atol=1e-12)
    child = para_jax.compress(got.adapters, para_jax.Epsilon(1.0))
    assert child.adapters["x"].rank == 2


def test_extracting_and_cutting_is_cutting_the_full_updates():
    rng = np.random.default_rng(2)
    full = {name: rng.normal(size=(8, 6)) for name in "xyz"}
    full["y"] *= 3
    zeros = {name: np.zeros((8, 6)) for name in full}

    adapters = para_jax.extract(zeros, full, rank=6).adapters
    child = para_jax.compress(adapters, para_jax.Rank(2))

    svds = {name: np.linalg.svd(x) for name, x in full.items()}
    tau = np.sort(np.concatenate([s for _, s, _ in svds.values()]))[-6]
    for name, (u, s, vt) in svds.items():
        k = int((s >= tau).sum())
        got = delta(child.adapters[name]) if k else np.zeros((8, 6))
        np.testing.assert_allclose(got, (u[:, :k] * s[:k]) @ vt[:k], atol=1e-10)


def test_the_rank_is_no_more_than_the_matrix_has():
    got = para_jax.extract({"x": np.zeros((8, 3))}, {"x": np.ones((8, 3))}, rank=9)

    assert got.adapters["x"].rank == 3


def test_what_is_no_matrix_is_reported_and_what_did_not_change_is_left_out():
    base = {
        "bias": np.zeros(2),
        "norm": np.ones(3),
        "x": np.ones((3, 2)),
        "t": np.ones(()),
    }
    tuned = base | {"bias": np.array([3.0, 4.0]), "t": np.array(3.0)}

    got = para_jax.extract(base, tuned, rank=1)

    assert got.unadapted == {"bias": 5.0, "t": 2.0}
    assert got.adapters == got.energy == {}


def test_a_matrix_of_integers_is_reported_not_adapted():
    base = {"positions": np.zeros((4, 4), np.int32)}

    got = para_jax.extract(base, {"positions": 3 * np.eye(4, dtype=np.int32)}, rank=2)

    assert got.adapters == {}
    assert got.unadapted == {"positions": pytest.approx(6.0)}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_the_difference_is_taken_before_it_is_rounded(dtype):
    # In bfloat16 itself, 256.0 - 1.0 would be 255 -> 256.
    base = np.ones((5, 3), dtype)
    tuned = base.copy()
    tuned[0, 0] = 256

    got = para_jax.extract({"x": base}, {"x": tuned}, rank=1)

    adapter = got.adapters["x"]
    assert adapter.a.dtype == adapter.b.dtype == dtype
    assert got.energy["x"] == pytest.approx(1.0, abs=1e-12)
    assert np.abs(delta(adapter)[0, 0] - 255) < 255 * 2 * float(
        ml_dtypes.finfo(dtype).eps
    )


@pytest.mark.user_defaults
def test_extraction_computes_in_double_precision_by_itself():
    rng = np.random.default_rng(3)
    base = rng.normal(size=(8, 6))
    change = 1e-9 * np.outer(rng.normal(size=8), rng.normal(size=6))

    got = para_jax.extract({"x": base}, {"x": base + change}, rank=1)

    relative = np.linalg.norm(delta(got.adapters["x"]) - change) / np.linalg.norm(
        change
    )
    assert relative < 1e-6


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        ({"x": np.ones((3, 2))}, {"y": np.ones((3, 2))}, r"only base has 'x' \(2 such"),
        ({}, {"y": np.ones((3, 2))}, "only tuned has 'y'"),
        (
            {"x": np.ones((3, 2))},
            {"x": np.ones((2, 3))},
            r"'x': base is \[3, 2\], tuned",
        ),
        (
            {"x": np.ones((3, 2))},
            {"x": np.full((3, 2), np.nan)},
            "'x': .* NaN or infinity",
        ),
    ],
)
def test_weights_that_do_not_belong_together_are_refused(base, tuned, message):
    with pytest.raises(ValueError, match=message):
        para_jax.extract(base, tuned, rank=1)


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="rank must be 1 or more, got 0"):
        para_jax.extract({}, {}, rank=0)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_plain_adapter_is_the_exact_change_of_the_original_weights(scale, last):
    """Check G-PIS-5."""
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(8, 6))
    initial = pissa(weight, 2, scale=scale, last=last)
    residual = weight - delta(initial)
    trained = dataclasses.replace(
        initial,
        a=initial.a + 0.1 * rng.normal(size=(8, 2)),
        b=initial.b + 0.1 * rng.normal(size=(2, 6)),
    )

    got = para_jax.plain({"x": trained}, {"x": initial})
    untrained = para_jax.plain({"x": initial}, {"x": initial})

    total = residual + delta(trained)
    np.testing.assert_allclose(weight + delta(got.adapters["x"]), total, atol=1e-14)
    np.testing.assert_allclose(delta(untrained.adapters["x"]), 0, atol=1e-15)
    assert np.linalg.matrix_rank(delta(got.adapters["x"])) == 4
    assert got.adapters["x"].rank == 4
    assert got.adapters["x"].nominal == 2
    assert got.residual == ""


def test_the_pissa_example_diag_9_4_1():
    """Check G-PIS-1: the definition on which the other tests build."""
    got = pissa(np.diag([9.0, 4, 1]), 1, scale=4.0)
    least = pissa(np.diag([9.0, 4, 1]), 1, scale=4.0, last=True)

    np.testing.assert_allclose(np.abs(got.a[:, 0]), [1.5, 0, 0], atol=1e-12)
    np.testing.assert_allclose(delta(got), np.diag([9.0, 0, 0]), atol=1e-12)
    np.testing.assert_allclose(np.abs(least.b[0]), [0, 0, 0.5], atol=1e-12)


def test_budgets_of_a_plain_adapter_count_its_nominal_rank():
    rng = np.random.default_rng(5)
    trained, initial = (
        {
            name: para_jax.Adapter(a=rng.normal(size=(8, 3)), b=rng.normal(size=(3, 7)))
            for name in "xy"
        }
        for _ in range(2)
    )

    parent = para_jax.plain(trained, initial)

    half = para_jax.compress(parent, para_jax.Gamma(0.5)).report
    same = para_jax.compress(parent, para_jax.Rank(1.5)).report
    whole = para_jax.compress(parent, para_jax.Gamma(1.0)).report
    assert [half.kept_rank, same.kept_rank, whole.kept_rank] == [3, 3, 6]
    with pytest.raises(ValueError, match="a budget of 7 ranks is above the parent's 6"):
        para_jax.compress(parent, para_jax.Rank(3.5))
    lossless = para_jax.compress(parent, para_jax.Epsilon(1.0))
    assert lossless.report.kept_rank == 12


@pytest.mark.parametrize("use", ["compress", "family", "search"])
def test_an_adapter_on_changed_weights_is_not_cut(use):
    adapters = {"x": para_jax.Adapter(a=np.ones((5, 2)), b=np.ones((2, 3)))}
    parent = para_jax.Checkpoint(adapters=adapters, residual="PiSSA")
    call = {
        "compress": lambda x: para_jax.compress(x, para_jax.Rank(1)),
        "family": lambda x: para_jax.family(x, [para_jax.Rank(1)]),
        "search": lambda x: para_jax.search(x, lambda _: 1.0, tolerance=0.1),
    }[use]

    with pytest.raises(ValueError, match=r"initialised by PiSSA.* Make it plain first"):
        call(parent)
    assert para_jax.plain(parent, adapters).residual == ""


def test_plain_passes_everything_else_on():
    adapters = {"x": para_jax.Adapter(a=np.ones((5, 2)), b=np.ones((2, 3)))}
    parent = para_jax.Checkpoint(
        adapters=adapters,
        residual="MiLoRA",
        extra={"head": np.ones(2)},
        config={"r": 2},
    )

    got = para_jax.plain(parent, adapters)

    assert got.extra is parent.extra
    assert got.config == {"r": 2}


def test_initial_adapters_of_another_model_are_refused():
    x = para_jax.Adapter(a=np.ones((5, 2)), b=np.ones((2, 3)))
    scaled = dataclasses.replace(x, scale=2.0)
    other = para_jax.Adapter(a=np.ones((5, 1)), b=np.ones((1, 3)))

    with pytest.raises(ValueError, match=r"initial and trained .* trained has 'x'"):
        para_jax.plain({"x": x}, {})
    for wrong in (scaled, other):
        with pytest.raises(ValueError, match=r"'x': the initial .* is not of"):
            para_jax.plain({"x": x}, {"x": wrong})


def test_norms_and_biases_of_scanned_layers_are_reported_not_adapted():
    rng = np.random.default_rng(0)
    base = {
        "layers/q/kernel": rng.normal(size=(2, 8, 6)),
        "layers/q/bias": rng.normal(size=(2, 6)),
        "layers/norm/scale": rng.normal(size=(2, 8)),
        "embed/embedding": rng.normal(size=(11, 8)),
    }
    tuned = {path: x + rng.normal(size=x.shape) for path, x in base.items()}

    got = para_jax.extract(base, tuned, rank=2)

    assert list(got.adapters) == ["layers/q/kernel"]
    others = base.keys() - got.adapters.keys()
    norms = {path: np.linalg.norm(tuned[path] - base[path]) for path in others}
    assert got.unadapted == pytest.approx(norms)


def test_checkpoints_are_made_plain_too():
    rng = np.random.default_rng(0)
    one, two = (
        para_jax.Checkpoint(
            adapters={
                "x": para_jax.Adapter(rng.normal(size=(8, 3)), rng.normal(size=(3, 6)))
            }
        )
        for _ in range(2)
    )

    got = para_jax.plain(one, two)

    want = delta(one.adapters["x"]) - delta(two.adapters["x"])
    np.testing.assert_allclose(delta(got.adapters["x"]), want, atol=1e-12)
