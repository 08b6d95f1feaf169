"""Test energy, error and choices at any scale of the update, by exact fractions."""

import math
from fractions import Fraction

import jax
import numpy as np
import pytest

import para_jax
from para_jax import Bytes, Epsilon, Gamma, Params, Rank, Threshold

SIGMA = {"x": [8.0, 4.0, 1.0], "y": [7.0, 2.0, 0.5], "z": [3.0, 2.5, 2.0]}
SCALES = [1e-150, 1e-90, 1e-40, 1.0, 1e40, 1e90, 1e150]


def model(scale):
    """Return adapters of singular values `SIGMA` times the scale's square."""
    return {path: diagonal(s, scale) for path, s in SIGMA.items()}


def diagonal(sigma, scale):
    return para_jax.Adapter(np.eye(7, 3) * sigma * scale, np.eye(3, 5) * scale)


def energy_of(report):
    """Return the kept share of the energy, in fractions."""
    total = kept = Fraction(0)
    for x in report.modules:
        squares = [Fraction(s) ** 2 for s in x.sigma.tolist()]
        total += sum(squares)
        kept += sum(s for s, some in zip(squares, x.mask, strict=True) if some)
    return kept / total


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "policy",
    [
        Gamma(0.25),
        Gamma(0.5, scope="local"),
        Rank(1, multiple_of=2),
        Params(60),
        Bytes(500),
        Epsilon(0.9),
        Epsilon(0.9, scope="local"),
        Threshold(2.25),
    ],
    ids=lambda x: x.name if isinstance(x, para_jax.Policy) else None,
)
def test_a_report_of_any_scale(policy, scale):
    if isinstance(policy, Threshold):
        policy = Threshold(policy.value * scale**2)
    report = para_jax.compress(model(scale), policy).report

    want = energy_of(report)
    assert 0 < want < 1
    np.testing.assert_allclose(report.energy, float(want), rtol=1e-12)
    np.testing.assert_allclose(report.error, math.sqrt(1 - want), rtol=1e-12)
    smallest = min(x.sigma[x.mask].min() for x in report.modules if x.kept)
    assert report.threshold == smallest
    whole = para_jax.compress(model(1.0), unscaled(policy, scale)).report
    assert [x.kept for x in report.modules] == [x.kept for x in whole.modules]
    assert report.tie is None


def unscaled(policy, scale):
    return (
        Threshold(policy.value / scale**2) if isinstance(policy, Threshold) else policy
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("policy", [Rank(1), Params(36), Epsilon(0.5)])
def test_ties_of_any_scale(policy, scale):
    """Keep one 4 and drop another; or 8, 7 and 4 just reach the requested energy."""
    sigma = [[8.0, 4.0, 1.0], [7.0, 4.0, 0.5], [2.0, 1.5, 0.0]]
    if isinstance(policy, Epsilon):
        sigma = [[8.0, 4.0, 1.0], [7.0, 2.0, 0.5], [3.0, 2.5, 0.0]]
        total = sum(s * s for row in sigma for s in row)
        policy = Epsilon(129 / total)
    adapters = {str(i): diagonal(s, scale) for i, s in enumerate(sigma)}

    assert para_jax.compress(adapters, policy).report.tie.precision == "float64"


@pytest.mark.parametrize("scale", SCALES)
def test_traced_choices_of_any_scale_are_those_of_the_host(scale):
    """Add a module some hundred times smaller than the others."""
    adapters = model(scale) | {"w": model(scale * 0.1)["x"]}
    spectra = jax.jit(para_jax.decompose)(adapters)
    for policy in (Gamma(0.5), Epsilon(0.9), Epsilon(0.95, scope="local")):
        traced = jax.jit(para_jax.masks)(spectra, policy)
        for path, rank in para_jax.ranks(spectra, policy).items():
            assert int(traced[path].sum()) == rank


@pytest.mark.parametrize(
    "precision",
    ["float64", pytest.param("float32", marks=pytest.mark.user_defaults)],
)
def test_a_module_has_its_own_energy_however_small_it_is(precision):
    """In float32 the squares of 1e-25 are zero, in float64 those of 1e-200."""
    tiny = 1e-25 if precision == "float32" else 1e-200
    row = np.array([4.0, 2.0, 1.0])
    spectra = {
        path: para_jax.Spectrum(
            s=s.astype(precision),
            left=np.zeros((3, 3)),
            right=np.zeros((3, 3)),
            shape=(7, 5),
            dtype="float32",
            nominal=3,
        )
        for path, s in {"x": row, "y": row * tiny}.items()
    }
    policy = Epsilon(0.9, scope="local")  # Of 21, the 20 of 4 and 2.

    exact, traced = para_jax.ranks(spectra, policy), para_jax.masks(spectra, policy)

    assert {path: int(rank) for path, rank in exact.items()} == {"x": 2, "y": 2}
    assert {path: int(mask.sum()) for path, mask in traced.items()} == {"x": 2, "y": 2}


@pytest.mark.parametrize("scale", [1e-150, 1e-90, 1e90, 1e150])
def test_an_extracted_adapter_knows_its_energy_at_any_scale(scale):
    rng = np.random.default_rng(0)
    base = {"x": np.zeros((7, 5))}
    tuned = {"x": rng.normal(size=(7, 5)) * scale}

    found = para_jax.extract(base, tuned, rank=2)

    s = np.linalg.svd(tuned["x"] / scale, compute_uv=False)
    (energy,) = found.energy.values()
    np.testing.assert_allclose(energy, (s[:2] ** 2).sum() / (s**2).sum(), rtol=1e-9)


# --- Classes that are not policies ----------------------------------------------------


class Half(Gamma):
    """Stand for a user-defined policy."""


def test_the_base_of_all_policies_is_none():
    with pytest.raises(
        TypeError, match=r"is abstract, and chooses nothing: use Gamma, Rank"
    ):
        para_jax.Policy(0.5)


def test_a_policy_that_no_rule_is_for_is_refused():
    class Own(para_jax.Policy):
        kind = "own"

    spectra = para_jax.decompose(model(1.0))
    for choose in (para_jax.masks, para_jax.ranks):
        with pytest.raises(TypeError, match=r"Expected a policy \(Gamma.* got Own"):
            choose(spectra, Own(0.5))


def test_a_subclass_of_a_policy_is_that_policy():
    spectra = para_jax.decompose(model(1.0))

    for path, rank in para_jax.ranks(spectra, Gamma(0.5)).items():
        assert para_jax.ranks(spectra, Half(0.5))[path] == rank
