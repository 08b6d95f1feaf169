"""Test the whole pipeline in one call: children, families, the search, the report."""

import dataclasses
import importlib
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax

Epsilon, Gamma, Rank = para_jax.Epsilon, para_jax.Gamma, para_jax.Rank

# Singular values by layer, of random [8, 6] updates; the rank of the factors is 3.
SIGMA = {
    "layer/2": [6.0, 2.0, 0.25],
    "layer/10": [5.0, 1.0, 0.75],
    "head": [0.5, 0.125, 0.0],
}
PATHS = ["head", "layer/2", "layer/10"]  # The model's order.


def parent(sigma=None, *, dtype=np.float32, scale=2.0, seed=0):
    """Return adapters of these singular values, in an arbitrary gauge."""
    rng, result = np.random.default_rng(seed), {}
    for path, s in (sigma or SIGMA).items():
        u, _ = np.linalg.qr(rng.normal(size=(8, 3)))
        v, _ = np.linalg.qr(rng.normal(size=(6, 3)))
        gauge = rng.normal(size=(3, 3)) + 2 * np.eye(3)
        a, b = (u * s) @ gauge, np.linalg.solve(gauge, v.T) / scale
        result[path] = para_jax.Adapter(a.astype(dtype), b.astype(dtype), scale)
    return result


def delta(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * a @ b


def ranks(child):
    return {x.path: x.kept for x in child.report.modules}


def test_the_child_is_the_truncated_updates():
    adapters = parent()

    child = para_jax.compress(adapters, Rank(4 / 3))

    assert ranks(child) == {"head": 0, "layer/2": 2, "layer/10": 2}
    assert sorted(child.adapters) == ["layer/10", "layer/2"]
    for path, x in child.adapters.items():
        u, s, vt = np.linalg.svd(delta(adapters[path]), full_matrices=False)
        np.testing.assert_allclose(delta(x), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)
        assert (x.a.shape, x.b.shape, x.scale) == ((8, 2), (2, 6), 1.0)
        assert x.a.dtype == x.b.dtype == np.float32


def test_the_report_is_what_numpy_finds():
    adapters = parent()

    report = para_jax.compress(adapters, Rank(4 / 3)).report

    s = {
        path: np.linalg.svd(delta(x), compute_uv=False)[:3]
        for path, x in adapters.items()
    }
    kept = np.concatenate([s["layer/2"][:2], s["layer/10"][:2]])
    total = sum((x**2).sum() for x in s.values())
    assert [x.path for x in report.modules] == PATHS
    for x in report.modules:
        np.testing.assert_allclose(x.sigma, s[x.path], atol=1e-6 * s[x.path][0])
        assert (x.inputs, x.outputs, x.rank, x.itemsize) == (8, 6, 3, 4)
    assert report.policy == "rank 1.333333333"
    assert report.threshold == pytest.approx(kept.min(), rel=1e-6)
    assert (report.total_rank, report.kept_rank, report.max_rank) == (9, 4, 2)
    assert report.average_rank == pytest.approx(4 / 3)
    assert (report.parameters, report.parent_parameters) == (56, 126)
    assert report.bytes == 224
    assert report.energy == pytest.approx((kept**2).sum() / total, abs=1e-7)
    assert report.error == pytest.approx(
        math.sqrt(1 - (kept**2).sum() / total), rel=1e-5
    )
    assert report.notes == ()


def test_the_error_of_the_report_is_the_error_of_the_child():
    adapters = parent()

    for gamma in (0.12, 0.5, 0.8):
        child = para_jax.compress(adapters, Gamma(gamma), form="masked")
        error = sum(
            np.linalg.norm(delta(x) - delta(child.adapters[path])) ** 2
            for path, x in adapters.items()
        )
        whole = sum(np.linalg.norm(delta(x)) ** 2 for x in adapters.values())
        assert child.report.error == pytest.approx(
            math.sqrt(error / whole), rel=1e-4, abs=1e-6
        )


def test_the_report_is_plain_json_and_text():
    report = para_jax.compress(parent(), Rank(4 / 3)).report
    nothing = para_jax.compress(parent(), Rank(0)).report

    data = json.loads(json.dumps(report.as_dict()))
    assert data["kept_rank"] == 4
    assert [x["kept"] for x in data["modules"]] == [0, 2, 2]
    assert data["modules"][1]["sigma"] == pytest.approx(SIGMA["layer/2"], rel=1e-4)
    text = str(report)
    assert "4 of 9 ranks kept, threshold 1" in text
    assert "1 of 3 modules removed" in text
    assert "56 of 126 (44.4%), 224 B" in text
    assert max(map(len, text.splitlines())) <= 80
    assert json.loads(json.dumps(nothing.summary()))["threshold"] is None
    assert nothing.energy == pytest.approx(0, abs=1e-12)
    assert (nothing.error, nothing.max_rank, nothing.parameters) == (1.0, 0, 0)


def test_a_budget_that_is_not_filled_is_noted():
    report = para_jax.compress(parent(), Gamma(1.0)).report

    assert report.kept_rank == 8  # One singular value of the nine is zero.
    assert re.match("1 of the budget's 9 ranks are not spent", report.notes[0])
    assert len(report.notes) == 1


def test_a_tie_at_the_threshold_is_noted():
    tied = {"x": [3.0, 2.0, 1.0], "y": [4.0, 2.0, 0.5]}
    apart = {"x": [3.0, 2.0, 1.0], "y": [4.0, 2.001, 0.5]}

    (note,) = para_jax.compress(parent(tied), Rank(1.5)).report.notes
    assert "equals the smallest kept one within rounding" in note
    assert para_jax.compress(parent(apart), Rank(1.5)).report.notes == ()
    assert para_jax.compress(parent(tied), Rank(2)).report.notes == ()
    assert para_jax.compress(parent(tied), Rank(0)).report.notes == ()


def test_a_family_is_its_members_one_by_one():
    policies = [Rank(1), Gamma(0.7), Epsilon(0.9), para_jax.Threshold(0.6)]
    adapters = parent()

    family = para_jax.family(adapters, policies)

    assert len(family) == 4
    for policy, child in zip(policies, family, strict=True):
        alone = para_jax.compress(adapters, policy)
        assert child.adapters.keys() == alone.adapters.keys()
        assert child.report.as_dict() == alone.report.as_dict()
        for path, x in alone.adapters.items():
            np.testing.assert_array_equal(child.adapters[path].a, x.a)
            np.testing.assert_array_equal(child.adapters[path].b, x.b)
    assert para_jax.family(adapters, []) == []


@pytest.fixture
def decompositions(monkeypatch):
    """Count how often the library decomposes something."""
    calls = []
    modules = [
        importlib.import_module(f"para_jax._pruning.{x}")
        for x in ("pipeline", "search")
    ]
    real = modules[0].spectra_of

    def counted(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs)

    for module in modules:
        monkeypatch.setattr(module, "spectra_of", counted)
    return calls


def test_a_family_is_decomposed_once(decompositions):
    para_jax.family(parent(), [Rank(1), Rank(2), Gamma(0.7), Epsilon(0.9)])

    assert len(decompositions) == 1


@pytest.mark.parametrize("form", ["ragged", "padded", "masked"])
def test_the_forms_of_a_child_are_equal_updates(form):
    adapters = parent()

    child = para_jax.compress(adapters, Rank(1), form=form)

    for path, x in adapters.items():
        u, s, vt = np.linalg.svd(delta(x), full_matrices=False)
        k = {"layer/2": 2, "layer/10": 1, "head": 0}[path]
        if k or form == "masked":
            got = delta(child.adapters[path])
            np.testing.assert_allclose(got, (u[:, :k] * s[:k]) @ vt[:k], atol=1e-5)


def test_everything_beside_the_adapters_is_passed_on():
    head = np.arange(6, dtype=np.float16)
    checkpoint = para_jax.Checkpoint(
        adapters=parent(),
        layers={"head": para_jax.Layer(kind="embedding")},
        biases={"layer/2": np.ones(6)},
        extra={"classifier.weight": head},
        config={"r": 3, "base_model_name_or_path": "some/model"},
        provenance={"trained": "here"},
    )

    child = para_jax.compress(checkpoint, Rank(1))

    assert isinstance(child, para_jax.Checkpoint)
    assert child.extra["classifier.weight"] is head
    assert child.config == checkpoint.config
    assert child.layers == checkpoint.layers
    assert child.biases.keys() == {"layer/2"}
    assert child.provenance["trained"] == "here"
    (cut,) = child.provenance["cuts"]
    assert cut.items() >= child.report.summary().items()
    assert cut["ranks"] == {x.path: x.kept for x in child.report.modules}
    json.dumps(child.provenance)
    assert checkpoint.provenance == {"trained": "here"}


def test_the_parent_is_not_changed():
    adapters = parent()
    before = {path: (x.a.copy(), x.b.copy()) for path, x in adapters.items()}

    para_jax.compress(adapters, Rank(1))

    for path, (a, b) in before.items():
        np.testing.assert_array_equal(adapters[path].a, a)
        np.testing.assert_array_equal(adapters[path].b, b)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_a_child_is_stored_in_the_dtype_asked_for(dtype):
    size = np.dtype(dtype).itemsize

    child = para_jax.compress(parent(), Rank(1), dtype=dtype)
    by_bytes = para_jax.compress(parent(), para_jax.Bytes(3 * 14 * size), dtype=dtype)

    assert {x.a.dtype for x in child.adapters.values()} == {np.dtype(dtype)}
    assert child.report.bytes == 3 * 14 * size
    assert by_bytes.report.kept_rank == 3


def test_a_child_of_a_stack_is_unstacked_in_the_models_order():
    rng = np.random.default_rng(0)
    stacked = {
        "mlp": para_jax.Adapter(
            a=rng.normal(size=(11, 5, 2)).astype(np.float32),
            b=rng.normal(size=(11, 2, 3)).astype(np.float32),
        )
    }

    child = para_jax.compress(stacked, Rank(2))

    assert [x.path for x in child.report.modules] == [f"mlp/{i}" for i in range(11)]
    np.testing.assert_allclose(
        delta(child.adapters["mlp/10"]), delta(stacked["mlp"])[10], atol=1e-5
    )


@pytest.mark.user_defaults
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_double_precision_is_used_without_being_asked_for_and_never_leaks(kind):
    # Graded by 1e-6, which single precision does not resolve in this gauge.
    adapters = {
        path: dataclasses.replace(x, a=kind(x.a), b=kind(x.b))
        for path, x in parent({"x": [1.0, 1e-3, 2e-6]}).items()
    }
    seen = []

    def metric(child):
        seen.append(jax.config.jax_enable_x64)
        assert jnp.asarray(1.0).dtype == jnp.float32
        return -len(seen)

    child = para_jax.compress(adapters, Gamma(1.0), form="masked")
    para_jax.family(adapters, [Gamma(0.5), Epsilon(0.5)], form="padded")
    para_jax.search(adapters, metric, tolerance=100)

    s = np.linalg.svd(delta(adapters["x"]), compute_uv=False)[:3]
    np.testing.assert_allclose(child.report.modules[0].sigma, s, rtol=1e-6)
    assert child.report.modules[0].sigma.dtype == np.float64
    assert child.adapters["x"].a.dtype == jnp.float32
    assert not jax.config.jax_enable_x64
    assert seen
    assert not any(seen)
    assert jnp.ones(1).dtype == jnp.float32


@pytest.mark.user_defaults
def test_double_precision_is_off_again_after_an_error():
    broken = parent()
    broken["head"].a[0, 0] = np.nan

    with pytest.raises(ValueError, match="NaN"):
        para_jax.compress(broken, Rank(1))
    with pytest.raises(ValueError, match="above the parent's"):
        para_jax.compress(parent(), Rank(9))
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("factor", ["a", "b"])
def test_a_factor_that_is_not_finite_is_refused_by_path(factor, value):
    broken = parent()
    getattr(broken["layer/10"], factor)[1, 2] = value

    with pytest.raises(ValueError, match=r"'layer/10': .* NaN or infinity"):
        para_jax.compress(broken, Rank(1))


def test_a_scale_that_is_not_finite_is_refused_by_path():
    broken = parent()
    broken["head"] = dataclasses.replace(broken["head"], scale=math.nan)

    with pytest.raises(ValueError, match="'head'"):
        para_jax.compress(broken, Rank(1))


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ({}, "no adapter to choose from"),
        (
            {"x": para_jax.Adapter(np.ones((5, 2)), np.ones((3, 4)))},
            "'x': the ranks disa",
        ),
        (
            {"x": para_jax.Adapter(np.ones((5, 0)), np.ones((0, 4)))},
            "'x': an axis of a",
        ),
    ],
)
def test_broken_parents_are_refused(adapters, message):
    with pytest.raises(ValueError, match=message):
        para_jax.compress(adapters, Gamma(0.5))


# --- The search -------------------------------------------------------------------


def energy_of(adapters):
    """Return a metric that rises with the rank: the energy present."""
    return sum(float(np.linalg.norm(delta(x)) ** 2) for x in adapters.values())


def test_the_search_finds_the_smallest_good_child(decompositions):
    squares = np.sort(np.square(np.concatenate(list(SIGMA.values()))))[::-1]
    energies = dict(enumerate(np.cumsum(squares), start=1))
    tolerance = 1.0  # 67.4 less 36, 25, 4 and 1 leaves 0.83: four ranks.

    found = para_jax.search(parent(), energy_of, tolerance=tolerance)

    assert found.child.report.kept_rank == 4
    assert found.parent_metric == pytest.approx(squares.sum(), rel=1e-5)
    assert [x.kept_rank for x in found.points] == sorted(
        x.kept_rank for x in found.points
    )
    for x in found.points:
        assert x.metric == pytest.approx(energies[x.kept_rank], rel=1e-4)
        assert x.accepted == (x.metric >= found.parent_metric - tolerance)
        assert x.average_rank == pytest.approx(x.kept_rank / 3)
    tried = {x.kept_rank: x.accepted for x in found.points}
    assert tried[4] is True
    assert tried[3] is False
    assert len(found.points) <= math.ceil(math.log2(9))
    assert len(decompositions) == 1
    assert str(found).count("\n") == len(found.points)


def test_every_call_of_the_metric_is_reported():
    shapes, calls = set(), []

    def metric(adapters):
        shapes.add(tuple((path, x.a.shape, x.b.shape) for path, x in adapters.items()))
        calls.append(sum(np.asarray(x.a).any(0).sum() for x in adapters.values()))
        return float(calls[-1])

    found = para_jax.search(parent(), metric, tolerance=4.5)

    assert len(shapes) == 1  # So a jitted model compiles once.
    assert sorted(calls[1:]) == [x.kept_rank for x in found.points]
    assert found.child.report.kept_rank == 5


def test_a_metric_that_is_not_monotone_still_gives_a_good_child():
    good = {2, 3, 6, 7}

    def metric(adapters):
        ranks = sum(np.asarray(x.a).any(0).sum() for x in adapters.values())
        return float(ranks in good or ranks > 8 or adapters["head"].scale != 1.0)

    found = para_jax.search(parent(), metric, tolerance=0.0)

    kept = found.child.report.kept_rank
    assert kept in good
    assert {x.kept_rank: x.accepted for x in found.points}[kept]
    assert not all(x.accepted for x in found.points)


def test_one_rank_is_left_however_tolerant_the_search_is():
    found = para_jax.search(parent(), energy_of, tolerance=math.inf)

    assert found.child.report.kept_rank == 1


def test_the_whole_parent_is_the_answer_where_nothing_less_is_good():
    calls = []

    def metric(adapters):
        calls.append(1)
        return 1.0 if len(calls) == 1 else 0.0

    found = para_jax.search(parent(), metric, tolerance=0.5, form="padded")

    assert found.child.report.kept_rank == 8  # Every nonzero component.
    assert not any(x.accepted for x in found.points)
    assert found.child.adapters["layer/2"].rank == 3


@pytest.mark.parametrize("tolerance", [-0.1, math.nan])
def test_a_negative_tolerance_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance must not be negative"):
        para_jax.search(parent(), energy_of, tolerance=tolerance)


def test_a_metric_that_gives_nan_is_refused():
    values = iter([1.0, math.nan])

    with pytest.raises(ValueError, match="The metric of the parent is NaN"):
        para_jax.search(parent(), lambda _: math.nan, tolerance=0.1)
    with pytest.raises(ValueError, match=r"The metric of \d ranks is NaN"):
        para_jax.search(parent(), lambda _: next(values), tolerance=0.1)


def test_an_adapter_made_plain_whose_budget_is_too_small_gives_no_search():
    # The update has twice the rank that budgets count, and all of it is needed.
    trained, initial = parent(seed=1), parent(seed=2)
    plain = para_jax.plain(trained, initial)
    want = {path: delta(x) for path, x in plain.adapters.items()}

    def metric(adapters):
        return -sum(
            float(np.sum((delta(x) - want[p]) ** 2)) for p, x in adapters.items()
        )

    with pytest.raises(ValueError, match="Not even 9 ranks"):
        para_jax.search(plain, metric, tolerance=1e-3)


def test_the_children_of_a_search_keep_to_its_limits():
    limits = Rank(1, min_rank=1, max_rank=2)

    found = para_jax.search(parent(), lambda _: 1.0, tolerance=0, limits=limits)

    assert {m.kept for m in found.child.report.modules} == {1}
    assert min(x.kept_rank for x in found.points) == 3


def test_cuts_of_cuts_are_all_remembered():
    child = para_jax.compress(parent(), Rank(2))
    grandchild = para_jax.compress(child, Rank(1))

    policies = [cut["policy"] for cut in grandchild.provenance["cuts"]]
    assert policies == ["rank 2", "rank 1"]


@pytest.mark.parametrize("xp", [np, jnp])
def test_what_belongs_to_a_stack_goes_to_its_members(xp):
    rows = list(parent().values())[:2]
    stacked = para_jax.Adapter(
        np.stack([x.a for x in rows]), np.stack([x.b for x in rows]), 2.0
    )
    bias = xp.arange(12.0).reshape(2, 6)
    checkpoint = para_jax.Checkpoint(
        adapters={"w": stacked},
        biases={"w": bias},
        layers={"w": para_jax.Layer(kind="embedding")},
    )

    child = para_jax.compress(checkpoint, Rank(1))

    assert list(child.biases) == list(child.layers) == ["w/0", "w/1"]
    np.testing.assert_array_equal(child.biases["w/1"], bias[1])


def test_a_child_beyond_the_range_of_its_dtype_is_refused():
    # The product fits into float16, its balanced factors do not.
    huge = {"x": para_jax.Adapter(np.full((8, 1), 1e8), np.full((1, 6), 1e8))}

    with pytest.raises(ValueError, match=r"'x'.*does not fit the range of float16"):
        para_jax.compress(huge, Rank(1), dtype="float16")


@pytest.mark.parametrize(
    ("dtype", "scale", "wide"),
    [("float16", 1e-14, "float32"), ("float32", 1e-90, "float64")],
)
def test_a_child_below_the_range_of_its_dtype_is_refused(dtype, scale, wide):
    """Its factors would be zeros, or a bit or two, unnoticed by the report."""
    a, b = np.eye(8, 3), np.eye(3, 6)
    tiny = {"x": para_jax.Adapter(a.astype(dtype), b.astype(dtype), scale)}

    with pytest.raises(
        ValueError, match=rf"'x'.*range of {dtype}. Store it in .*{wide}"
    ):
        para_jax.compress(tiny, Rank(2))

    child = para_jax.compress(tiny, Rank(2), dtype=wide).adapters["x"]
    products = np.float64(child.a) @ np.float64(child.b)
    s = np.linalg.svd(products / scale, compute_uv=False)
    np.testing.assert_allclose(s[:3], [1, 1, 0], atol=1e-6)


def test_a_tiny_module_beside_others_may_be_lost():
    """Its contribution is negligible beside the rest of the model."""
    rows = {"x": para_jax.Adapter(np.eye(8, 3), np.eye(3, 6), 1e-20)}
    rows |= {"y": para_jax.Adapter(np.eye(8, 3), np.eye(3, 6))}

    child = para_jax.compress(rows, Gamma(1), dtype="float16")

    assert child.adapters["y"].a.dtype == np.float16


@pytest.mark.parametrize("scale", [1.0, 1e300])
def test_an_update_beyond_float64_is_not_called_nan(scale):
    huge = {
        "x": para_jax.Adapter(np.full((8, 2), 1e160), np.full((2, 6), 1e160), scale)
    }

    with pytest.raises(
        ValueError, match=r"'x': its singular values are beyond .*float64"
    ):
        para_jax.compress(huge, Rank(1))


def test_a_dtype_that_holds_no_fractions_is_refused():
    with pytest.raises(ValueError, match="dtype is int8, expected floating point"):
        para_jax.compress(parent(), Rank(1), dtype="int8")


def test_a_number_is_no_policy():
    module = importlib.import_module("para_jax._pruning.pipeline")
    cut = module.cut.__wrapped__  # As it is without the tests' type checks.

    with pytest.raises(TypeError, match=r"a policy such as Gamma\(0.25\), got 0.25"):
        cut(para_jax.Checkpoint(adapters={}), {}, 0.25)


def test_compressing_inside_jit_is_refused_in_words():
    with pytest.raises(ValueError, match=r"is traced.*Inside jit, use decompose"):
        jax.jit(lambda x: para_jax.compress(x, Rank(1)).adapters)(parent())


@pytest.mark.parametrize(
    ("policy", "tie"),
    [
        (Rank(2, scope="local"), True),
        (Rank(1, scope="local"), False),
        (para_jax.Params(42), False),
    ],
)
def test_a_tie_is_looked_for_where_the_policy_chooses(policy, tie):
    sigma = {"a": [10.0, 5.0, 5.0], "b": [2.0, 1.0, 0.5]}

    notes = para_jax.compress(parent(sigma), policy).report.notes

    assert any("within rounding" in note for note in notes) == tie


def test_a_gamma_below_one_rank_warns_once():
    with pytest.warns(UserWarning, match="less than one: kept one") as found:
        para_jax.compress(parent(), Gamma(0.01))

    assert len(found) == 1


def test_a_report_counts_what_budgets_count():
    plain = para_jax.plain(parent(seed=1), parent(seed=2))

    child = para_jax.compress(plain, Gamma(1.0))

    assert "9 of 9 ranks kept" in str(child.report)
