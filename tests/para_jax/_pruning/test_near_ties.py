"""Test that a report says when rounding may change a choice, and only then."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import para_jax
from para_jax import Bytes, Epsilon, Gamma, Params, Rank, Threshold
from para_jax._pruning.report import report
from para_jax._pruning.select import exact_masks
from para_jax.linalg.tolerances import RESOLUTION


def diagonal(*sigma, m=7, n=5):
    """Return an adapter with exactly the singular values `sigma`."""
    r = len(sigma)
    return para_jax.Adapter(a=np.eye(m, r) * np.array(sigma), b=np.eye(r, n))


def model(**sigma):
    return {path: diagonal(*values) for path, values in sigma.items()}


def tie(adapters, policy):
    return para_jax.compress(adapters, policy).report.tie


@pytest.mark.parametrize(
    ("factor", "precision"),
    [
        (1, "float64"),
        (1 - 1e-14, "float64"),
        (1 - 1e-10, "float32"),
        (1 - 2e-7, "float32"),
        (1 - 1e-5, None),
    ],
)
@pytest.mark.parametrize("policy", [Rank(1.5), Gamma(0.75), Params(36)])
def test_how_close_a_tie_is_decides_who_may_choose_otherwise(policy, factor, precision):
    found = tie(model(x=[3.0, 2.0], y=[4.0, 2.0 * factor]), policy)

    assert (found and found.precision) == precision
    if precision:
        assert found.modules == ("x", "y")
        np.testing.assert_allclose(found.gap, 1 - factor, atol=1e-15, rtol=1e-6)


def test_a_tie_is_relative_to_the_largest_value_of_each_module():
    """Components small within their module are known less accurately."""
    flat = model(x=[2.0, 1.0], y=[2.0, 1.0 - 1e-5])
    steep = model(x=[2000.0, 1.0], y=[2.0, 1.0 - 1e-5])

    assert tie(flat, Rank(1.5)) is None
    assert tie(steep, Rank(1.5)).precision == "float32"


@pytest.mark.parametrize("policy", [Params(24), Bytes(24 * 8)])
def test_a_tie_is_one_of_what_the_policy_orders_by(policy):
    """A component of `x` costs 12, one of `y` 48: it is worth half as much."""
    x = diagonal(5.0, 1.0, 0.9)
    equal = {"x": x, "y": diagonal(2.0, 0.1, m=29, n=19)}
    equal_values = {"x": x, "y": diagonal(1.0, 0.1, m=29, n=19)}

    assert tie(equal, policy).modules == ("x", "y")
    assert tie(equal_values, policy) is None
    assert tie(equal, Rank(1)) is None
    assert tie(equal_values, Rank(1)).modules == ("x", "y")


@pytest.mark.parametrize(
    ("epsilon", "precision"),
    [(0.8, "float64"), (0.8 + 1e-9, "float32"), (0.8 - 1e-9, "float32"), (0.79, None)],
)
def test_an_energy_that_just_reaches_its_share_is_a_tie(epsilon, precision):
    """Of an energy of 16.25, the 13 of 3 and 2 are 0.8."""
    found = tie(model(x=[3.0, 1.0], y=[2.0, 1.5]), Epsilon(epsilon))

    assert (found and found.precision) == precision
    if precision:
        assert "the kept energy equals what is asked for" in str(found)
        assert found.modules == ("y",)  # Its 1.5 may stay or go.


def test_all_of_the_energy_is_no_tie():
    sigma = model(x=[3.0, 1.0], y=[2.0, 4.2 * RESOLUTION])  # Just not zero.

    assert tie(sigma, Epsilon(1.0)) is None
    assert tie(model(x=[3.0, 0.0], y=[2.0, 0.0]), Epsilon(1.0)) is None


@pytest.mark.parametrize(
    ("tau", "precision"),
    [(2.0, "float64"), (2 + 1e-9, "float32"), (2 - 1e-9, "float32"), (2.1, None)],
)
def test_a_value_at_the_threshold_is_a_tie(tau, precision):
    found = tie(model(x=[3.0, 2.0], y=[4.0, 1.9]), Threshold(tau))

    assert (found and found.precision) == precision
    if precision:
        assert "a component equals the threshold" in str(found)
        assert found.modules == ("x",)


def test_two_values_that_energy_separates_may_be_a_tie():
    """Of 33, the 29 of 4, 3 and one 2 exceed 0.8; the 25 of 4 and 3 do not."""
    close = model(x=[3.0, 2.0], y=[4.0, 2.0 - 1e-9])

    assert tie(close, Epsilon(0.8)).modules == ("x", "y")
    assert tie(model(x=[3.0, 2.0], y=[4.0, 2.0]), Epsilon(0.8)) is None  # Both stay.


def test_equal_values_on_one_side_of_the_cut_are_no_tie():
    sigma = model(x=[3.0, 2.0], y=[3.0, 2.0])

    for policy in (Rank(1), Rank(2), Rank(0), Threshold(2.5), Epsilon(0.6), Gamma(1)):
        assert tie(sigma, policy) is None, policy.name


def test_what_a_limit_or_the_tolerance_decides_is_no_tie():
    sigma = model(x=[5.0, 4.0, 1.0], y=[4.0, 1.0, 1e-8])

    assert tie(sigma, Rank(1.5, max_rank=1)) is None  # 4 was not to be had.
    assert tie(sigma, Rank(2, min_rank=2)) is None  # 1 had to be taken twice.
    assert tie(model(x=[5.0, 1.3e-6], y=[5.0, 1.1e-6]), Gamma(1)) is None  # 1.1 is 0.


def test_blocks_tie_as_blocks():
    apart = model(x=[5.0, 4.0, 3.0, 1.0], y=[3.0, 2.0, 1.0, 0.5])
    equal = model(x=[5.0, 4.0, 3.0, 1.0], y=[3.0, 1.0, 1.0, 0.5])

    assert tie(apart, Rank(2, multiple_of=2)) is None
    assert tie(equal, Rank(2, multiple_of=2)).modules == ("x", "y")


def test_a_local_tie_names_the_modules_that_have_one():
    sigma = model(x=[5.0, 3.0, 3.0], y=[3.0, 2.0, 1.0], z=[2.0, 2.0, 1.0])

    assert tie(sigma, Rank(2, scope="local")).modules == ("x",)
    assert tie(sigma, Rank(1, scope="local")).modules == ("z",)


def test_a_stack_names_its_kernel():
    a = np.eye(7, 2) * np.array([[[3.0, 1.0]], [[5.0, 2.0]], [[4.0, 1.0]]])
    stack = {"mlp": para_jax.Adapter(a=a, b=np.broadcast_to(np.eye(2, 5), (3, 2, 5)))}

    assert tie(stack, Threshold(2.0)).modules == ("mlp/1",)


def test_many_modules_are_counted_after_the_first():
    (note,) = para_jax.compress(
        model(**{f"layer{i}": [2.0, 1.0] for i in range(5)}), Rank(0.6)
    ).report.notes

    assert "'layer0', 'layer1', 'layer2' and 2 more" in note


def test_text_and_json_say_the_same():
    child = para_jax.compress(model(x=[3.0, 2.0], y=[4.0, 2.0]), Rank(1.5))
    data = json.loads(json.dumps(child.report.as_dict()))

    assert data["tie"] == {
        "what": "the largest dropped component equals the smallest kept one",
        "precision": "float64",
        "gap": 0.0,
        "modules": ["x", "y"],
    }
    assert data["notes"] == [str(child.report.tie)]
    assert f"note        {child.report.tie}" in str(child.report)
    assert "another platform may choose otherwise" in str(child.report)


def test_without_a_tie_neither_says_anything():
    found = para_jax.compress(model(x=[3.0, 2.0], y=[4.0, 1.0]), Rank(1.5)).report

    assert found.as_dict()["tie"] is None
    assert "note" not in str(found)


@pytest.mark.user_defaults
def test_a_spectrum_in_single_precision_is_judged_by_its_own_rounding():
    adapters = model(x=[3.0, 2.0], y=[4.0, 2.0])
    adapters = jax.tree.map(np.float32, adapters)
    spectra = jax.device_get(jax.jit(para_jax.decompose)(adapters))

    found = report(spectra, exact_masks(spectra, Rank(1.5)), Rank(1.5)).tie

    assert found.precision == "float32"


def nearly_tied(rng, models):
    """Return pairs of kernels `[models, 2, ...]` with one nearly common value."""
    sigma = np.array([[3.0, 2.0], [4.0, 2.0]]) * np.ones((models, 1, 1))
    sigma[:, 1, 1] *= 1 + rng.choice([-1, 1], models) * 10 ** rng.uniform(
        -8, -4, models
    )
    q = [np.linalg.qr(rng.normal(size=(models, 2, d, 2)))[0] for d in (13, 11)]
    rotation = np.linalg.qr(rng.normal(size=(models, 2, 2, 2)))[0]
    a = (q[0] * sigma[:, :, None]) @ rotation
    b = rotation.mT @ q[1].mT
    return para_jax.Adapter(a=a.astype(np.float32), b=b.astype(np.float32))


@pytest.mark.parametrize("method", ["qr", "gram"])
@pytest.mark.slow
def test_a_choice_without_a_tie_is_the_same_in_single_precision(method):
    models, policy = 300, Rank(1.5)
    parent = {"x": nearly_tied(np.random.default_rng(0), models)}
    decompose = jax.jit(para_jax.decompose, static_argnames="method")
    found = []
    for wide in (True, False):
        with jax.enable_x64(wide):
            whole = jax.device_get(decompose(parent, method=method))
        found.append([one_model(whole["x"], i) for i in range(models)])

    noted, differ = np.zeros((2, models), bool)
    for i, (wide, narrow) in enumerate(zip(*found, strict=True)):
        mask, other = (exact_masks(x, policy)["x"] for x in (wide, narrow))
        noted[i] = report(wide, {"x": mask}, policy).tie is not None
        differ[i] = (mask != other).any()

    assert not (differ & ~noted).any()
    assert 0 < differ.sum() < noted.sum() < models  # It could have failed.


def one_model(spectrum, i):
    parts = {name: getattr(spectrum, name)[i] for name in ("s", "left", "right")}
    return {"x": dataclasses.replace(spectrum, **parts)}
