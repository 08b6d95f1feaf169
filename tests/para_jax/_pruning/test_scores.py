"""Test scores against NumPy's choice in float64, from SVDs of its own."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax as para
from para_jax import plot
from para_jax._pruning import scores
from tests import reference

# Modules whose updates differ by orders, as feed-forward and attention do.
SCALES = {"attn/q": 1.0, "mlp/up": 30.0, "mlp/down": 4e-3, "layers/o": 0.2}
FALLS = {"attn/q": 0.5, "mlp/up": 0.9, "mlp/down": 0.8, "layers/o": 0.7}
SHAPES = {"attn/q": (24, 24), "mlp/up": (24, 60), "mlp/down": (60, 24)}
NORMS = {"attn/q": 3.0, "mlp/up": 50.0, "mlp/down": 0.5, "layers/o": [2.0, 9.0, 0.1]}
SCORES = [
    "sigma",
    "relative",
    para.Score(0.5),
    para.Score(2.0),
    para.Score(norms=NORMS),
    para.Score(0.25, norms=NORMS),
]
POLICIES = [
    lambda score: para.Gamma(0.25, score=score),
    lambda score: para.Rank(1.4, score=score),
    lambda score: para.Params(500, score=score),
    lambda score: para.Epsilon(0.8, score=score),
]
each_score = pytest.mark.parametrize("score", SCORES, ids=str)
each_policy = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture(scope="module")
def adapters():
    rng = np.random.default_rng(7)
    found = {}
    for path, scale in SCALES.items():
        stack = (3,) if path == "layers/o" else ()
        m, n = SHAPES.get(path, (24, 40))
        # Columns of falling size, so that spectra fall.
        fall = np.float32(FALLS[path]) ** np.arange(8, dtype=np.float32)
        a = np.float32(rng.normal(size=(*stack, m, 8)) * scale) * fall
        found[path] = para.Adapter(a, np.float32(rng.normal(size=(*stack, 8, n))))
    return found


def kept(masks):
    return {
        (path, *index): int(np.asarray(mask)[index].sum())
        for path, mask in masks.items()
        for index in np.ndindex(np.shape(mask)[:-1])
    }


@each_score
@each_policy
def test_ranks_are_those_of_numpy(adapters, score, policy):
    policy = policy(score)
    wanted = reference.cut(reference.kernels(adapters), policy)
    # No ties, so no doubt.
    assert wanted.gap > 1e-4
    assert wanted.slack > 1e-4
    assert len(set(wanted.ranks.values())) > 1
    spectra = para.spectra_of(adapters)
    assert kept(para.masks(spectra, policy)) == wanted.ranks
    assert kept(jax.jit(para.masks)(spectra, policy)) == wanted.ranks
    found = {
        (path, *index): int(ranks[index])
        for path, ranks in para.ranks(spectra, policy).items()
        for index in np.ndindex(ranks.shape)
    }
    assert found == wanted.ranks


@pytest.mark.user_defaults
@each_score
@each_policy
def test_ranks_are_those_of_numpy_in_single_precision(adapters, score, policy):
    policy = policy(score)
    spectra = jax.jit(para.decompose)(adapters)
    wanted = reference.cut(reference.kernels(adapters), policy)
    assert kept(jax.jit(para.masks)(spectra, policy)) == wanted.ranks


def test_scores_differ_in_what_they_keep(adapters):
    spectra = para.spectra_of(adapters)
    found = {
        tuple(kept(para.masks(spectra, para.Gamma(0.25, score=x))).values())
        for x in SCORES
    }
    assert len(found) >= 4


def test_one_program_serves_all_budgets_of_a_score(adapters):
    spectra = para.decompose(adapters)
    gammas = jnp.linspace(0.1, 1.0, 10)
    policy = para.Gamma(gammas, score="relative")
    many = jax.vmap(para.masks, in_axes=(None, 0))(spectra, policy)
    found = reference.kernels(adapters)
    for i, gamma in enumerate(np.asarray(gammas, np.float64)):
        wanted = reference.cut(found, para.Gamma(float(gamma), score="relative"))
        one = {path: x[i] for path, x in many.items()}
        assert kept(one) == wanted.ranks


def test_a_relative_score_does_not_depend_on_the_size_of_updates(adapters):
    policy = para.Gamma(0.25, score="relative")
    before = para.compress(adapters, policy).report.ranks
    # Far apart: the squares of the small one are zero beside those of the large one.
    powers = {"attn/q": 2.0**-60, "mlp/up": 2.0**60}
    scaled = {
        path: para.Adapter(x.a * np.float32(powers.get(path, 1)), x.b)
        for path, x in adapters.items()
    }
    assert para.compress(scaled, policy).report.ranks == before
    spectra = jax.jit(para.decompose)(scaled)
    assert list(kept(jax.jit(para.masks)(spectra, policy)).values()) == list(
        before.values()
    )


@pytest.mark.user_defaults
@pytest.mark.parametrize("jit", [False, True])
def test_updates_of_rank_one_tie_and_the_earlier_ones_are_kept(jit):
    sigma = [49.0, 3.0, 41.0, 7.0, 55.0, 1.0, 10.0, 0.3]
    one = np.eye(5, 1, dtype=np.float32)
    some = {
        f"layer/{i}": para.Adapter(one, np.float32(x) * one.T)
        for i, x in enumerate(sigma)
    }
    policy = para.Rank(0.5, score="relative")
    if jit:
        masks = jax.jit(para.masks)(para.decompose(some), policy)
        found = {path: int(x.sum()) for path, x in masks.items()}
    else:
        found = para.compress(some, policy).report.ranks
    assert [found[f"layer/{i}"] for i in range(8)] == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.user_defaults
@pytest.mark.parametrize("norm", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_equal_norms_do_not_matter_in_float32(adapters, norm, power):
    same = para.Score(power, norms=dict.fromkeys(NORMS, norm))
    spectra = jax.jit(para.decompose)(adapters)
    for make in (para.Gamma, para.Epsilon):
        found = jax.jit(para.masks)(spectra, make(0.5, score=same))
        assert kept(found) == kept(jax.jit(para.masks)(spectra, make(0.5)))


def test_within_a_module_the_order_stays(adapters):
    policy = para.Gamma(0.5, scope="local")
    alone = para.compress(adapters, policy).report.ranks
    relative = para.Gamma(0.5, scope="local", score="relative")
    assert para.compress(adapters, relative).report.ranks == alone


def test_a_module_of_zeros_is_dropped(adapters):
    zeros = para.Adapter(np.zeros((24, 8), np.float32), adapters["attn/q"].b)
    some = adapters | {"attn/v": zeros}
    for score in ("relative", para.Score(0.5)):
        policy = para.Gamma(0.5, score=score)
        assert para.compress(some, policy).report.ranks["attn/v"] == 0
        masks = jax.jit(para.masks)(para.decompose(some), policy)
        assert int(masks["attn/v"].sum()) == 0


def test_children_of_a_score_nest(adapters):
    budgets = [para.Gamma(x, score="relative") for x in (0.1, 0.3, 0.6)]
    ranks = [list(x.report.ranks.values()) for x in para.family(adapters, budgets)]
    assert (np.diff(ranks, axis=0) >= 0).all()


def test_the_report_says_what_was_compared(adapters):
    report = para.compress(adapters, para.Gamma(0.25, score="relative")).report
    assert report.policy == "gamma 0.25 relative"
    assert "of relative scores" in str(report)
    scores = {}
    for (path, *index), x in reference.kernels(adapters).items():
        name = "/".join(map(str, (path, *index)))
        scores[name] = x.s / np.linalg.norm(x.s)
    last = min(scores[p][rank - 1] for p, rank in report.ranks.items() if rank)
    np.testing.assert_allclose(report.threshold, last, rtol=1e-6)
    for row in report.as_dict()["modules"]:
        values = row["weight"] * np.array(row["sigma"])
        np.testing.assert_allclose(values, scores[row["path"]], rtol=1e-5, atol=1e-9)
    axes = plot.spectrum(report).axes[0]
    assert axes.get_xlabel() == "relative score"


def test_a_copy_at_another_scale_is_a_near_tie(adapters):
    x = adapters["attn/q"]
    # Not a power of two: the two norms round differently.
    two = {"one": x, "two": para.Adapter(x.a * np.float32(3.1), x.b)}
    report = para.compress(two, para.Rank(2.5, score="relative")).report
    assert report.tie is not None
    assert set(report.tie.modules) == {"one", "two"}
    assert para.compress(two, para.Rank(2.5)).report.tie is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        # Unwrapped: the tests' own check of types would be first.
        (
            lambda: inspect.unwrap(scores.named)("size"),
            "'sigma', 'relative' or a Score",
        ),
        (lambda: para.Score(-1.0), "power must be a number from 0 up"),
        (lambda: para.Score(float("nan")), "power must be a number from 0 up"),
        (lambda: para.Score(norms={"a": 0.0}), "'a': the norm is 0.0"),
        (lambda: para.Score(norms={"a": [1.0, np.nan]}), "'a': the norm is nan"),
        (lambda: para.Score(norms={"a": []}), "'a': the norm is missing"),
    ],
)
def test_impossible_scores_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_norms_have_to_be_those_of_the_modules(adapters):
    some = {path: x for path, x in NORMS.items() if path != "attn/q"}
    with pytest.raises(ValueError, match="no norm for 'attn/q'"):
        para.compress(adapters, para.Gamma(0.5, score=para.Score(norms=some)))
    short = NORMS | {"layers/o": [1.0, 2.0]}
    with pytest.raises(ValueError, match="2 norms, expected one for each of its 3"):
        para.compress(adapters, para.Gamma(0.5, score=para.Score(norms=short)))
    one = NORMS | {"layers/o": 2.0}
    policy = para.Gamma(0.25, score=para.Score(norms=one))
    assert para.compress(adapters, policy).report.kept_rank == 12
