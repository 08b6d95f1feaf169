import dataclasses

import numpy as np
import pytest

import para_jax as para
from para_jax._adapters.adapter import Adapter
from para_jax._pruning import select
from train import posthoc

LOCAL = {"scope": "local", "remainder": "greedy"}
POLICIES = [
    *(para.Rank(r) for r in (16, 8, 4, 2, 1, 0.5, 0.1, 0)),
    *(para.Rank(r, **LOCAL) for r in (16, 8, 4.3, 4, 2, 1, 0.5)),
    para.Rank(4.3, scope="local"),
    para.Gamma(0.29),
]


def diagonal(**spectra):
    """Updates with the given singular values, as orthogonal factors."""
    return posthoc.decompose(
        {p: Adapter(np.diag(s), np.eye(len(s))) for p, s in spectra.items()}
    )


def sigma(parts):
    return {path: x.s for path, x in parts.items()}


def ranks(masks):
    return {path: int(mask.sum()) for path, mask in masks.items()}


def energy(parts, masks):
    return sum(float((x.s[masks[path]] ** 2).sum()) for path, x in parts.items())


@pytest.fixture(scope="module")
def real_parts(real):
    return posthoc.decompose(real)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda x: x.name)
def test_singular_values_are_chosen_as_by_para(real_parts, policy):
    spectra = {path: x.spectrum for path, x in real_parts.items()}

    got = posthoc.choose(real_parts, sigma(real_parts), policy)

    want = select.exact_masks(spectra, policy)
    for path, mask in got.items():
        np.testing.assert_array_equal(mask, want[path])


@pytest.mark.parametrize("budget", [800, 20_000, 165_888, 663_552])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_parameters_are_spent_as_by_para(real_parts, budget, scope):
    policy = para.Params(budget, scope=scope, remainder="greedy")
    spectra = {path: x.spectrum for path, x in real_parts.items()}
    scores = posthoc.SCORES["per-parameter"]
    worth = {path: scores(x, None) for path, x in real_parts.items()}

    got = posthoc.choose(real_parts, worth, policy)

    want = select.exact_masks(spectra, policy)
    for path, mask in got.items():
        np.testing.assert_array_equal(mask, want[path])


@pytest.mark.parametrize("rank", [16, 8, 4.2, 2, 1, 0.5, 0.25])
def test_global_and_local_children_have_one_total(real_parts, generator, rank):
    scores = {path: generator.normal(size=16) for path in real_parts}
    total = int(36 * rank + 1e-9)

    for scope in ("global", "local"):
        policy = para.Rank(rank, scope=scope, remainder="greedy")
        got = ranks(posthoc.choose(real_parts, scores, policy))

        assert sum(got.values()) == total
        if scope == "local":
            assert max(got.values()) - min(got.values()) <= 1


def test_parameter_budgets_are_met_and_never_exceeded(real_parts, generator):
    scores = {path: generator.normal(size=16) for path in real_parts}
    for budget in (800, 1_920, 30_001, 500_000):
        masks = posthoc.choose(real_parts, scores, para.Params(budget))

        child = posthoc.child(real_parts, masks)

        spent = sum(x.parameters for x in child.values())
        assert budget - 1_920 < spent <= budget


def test_any_score_keeps_its_best_and_children_nest(real_parts, generator):
    scores = {path: generator.normal(size=16) for path in real_parts}
    before = {path: np.zeros(16, bool) for path in real_parts}

    for rank in (0.5, 1, 3, 9):
        masks = posthoc.choose(real_parts, scores, para.Rank(rank))
        kept = np.concatenate([scores[p][masks[p]] for p in masks])
        dropped = np.concatenate([scores[p][~masks[p]] for p in masks])
        assert kept.min() > dropped.max()
        assert all((before[path] <= masks[path]).all() for path in masks)
        before = masks


def test_local_children_keep_each_modules_best_by_score(generator):
    parts = diagonal(p=[3.0, 2.0, 1.0], q=[9.0, 8.0, 7.0])
    scores = {"p": np.array([1.0, 3.0, 2.0]), "q": np.array([0.1, 0.2, 0.3])}

    one = posthoc.choose(parts, scores, para.Rank(1, **LOCAL))
    and_a_half = posthoc.choose(parts, scores, para.Rank(1.5, **LOCAL))

    np.testing.assert_array_equal(one["p"], [False, True, False])
    np.testing.assert_array_equal(one["q"], [False, False, True])
    np.testing.assert_array_equal(and_a_half["p"], [False, True, True])
    np.testing.assert_array_equal(and_a_half["q"], one["q"])


def test_below_one_rank_the_modules_with_the_largest_first_value_keep_it():
    parts = diagonal(p=[3.0, 2.9], q=[1.0, 0.5], r=[2.0, 1.9], s=[5.0, 4.0])

    got = posthoc.choose(parts, sigma(parts), para.Rank(0.5, **LOCAL))

    assert ranks(got) == {"p": 1, "q": 0, "r": 0, "s": 1}


def test_the_energy_of_global_children_is_at_least_that_of_local_ones(real_parts):
    for rank in (8, 4, 2, 1):
        kept = [
            energy(real_parts, posthoc.choose(real_parts, sigma(real_parts), policy))
            for policy in (para.Rank(rank), para.Rank(rank, **LOCAL))
        ]
        assert kept[0] > kept[1]


def test_identical_spectra_and_single_modules_make_local_global():
    same = diagonal(p=[3.0, 2.0, 1.0], q=[3.0, 2.0, 1.0])
    single = diagonal(p=[3.0, 2.0, 1.0])

    for parts in (same, single):
        for rank in (1, 2, 3):
            everywhere, alone = (
                posthoc.choose(parts, sigma(parts), para.Rank(rank, **options))
                for options in ({}, LOCAL)
            )
            assert ranks(everywhere) == ranks(alone)


def test_the_paper_example_of_a_pool():
    parts = diagonal(a=[6.0, 2.0], b=[5.0, 1.0], c=[0.5, 0.0])

    half = posthoc.choose(parts, sigma(parts), para.Gamma(0.5))
    whole = posthoc.choose(parts, sigma(parts), para.Gamma(1.0))

    assert ranks(half) == {"a": 2, "b": 1, "c": 0}
    assert energy(parts, half) / 66.25 == pytest.approx(65 / 66.25)
    assert ranks(whole) == {"a": 2, "b": 2, "c": 1}  # The zero is never bought.


def test_a_score_cannot_buy_what_counts_as_zero():
    parts = diagonal(a=[6.0, 0.0], b=[5.0, 1.0])
    scores = {"a": np.array([1.0, 9.0]), "b": np.array([3.0, 2.0])}

    for options in ({}, LOCAL):
        got = posthoc.choose(parts, scores, para.Rank(1, **options))
        assert not got["a"][1]


def test_of_equal_scores_the_earlier_layer_keeps_its_component():
    parts = diagonal(layer10=[2.0, 1.0], layer2=[2.0, 1.0])
    scores = {path: np.ones(2) for path in parts}

    got = posthoc.choose(parts, scores, para.Rank(1))

    assert ranks(got) == {"layer2": 2, "layer10": 0}


def test_dropping_the_top_keeps_what_para_drops(real_parts):
    for count in (0, 1, 36, 576):
        kept = posthoc.drop_top(real_parts, count)
        para_keeps = posthoc.choose(
            real_parts, sigma(real_parts), para.Rank(count / 36)
        )
        for path, mask in kept.items():
            np.testing.assert_array_equal(mask, ~para_keeps[path])


def test_dropping_the_top_is_of_all_modules_together():
    parts = diagonal(a=[6.0, 2.0], b=[5.0, 1.0], c=[0.5, 0.0])

    got = posthoc.drop_top(parts, 3)

    np.testing.assert_array_equal(got["a"], [False, False])
    np.testing.assert_array_equal(got["b"], [False, True])
    np.testing.assert_array_equal(got["c"], [True, False])
    with pytest.raises(ValueError, match="drop 6 components, expected 0 to 5"):
        posthoc.drop_top(parts, 6)


@pytest.mark.parametrize(
    "scores", [{}, {"a": np.ones(3)}, {"a": np.array([1, np.nan])}]
)
def test_scores_that_are_missing_or_nan_are_refused(scores):
    parts = diagonal(a=[6.0, 2.0])

    with pytest.raises(ValueError, match=r"'a' has the scores .* expected 2 numbers"):
        posthoc.choose(parts, scores, para.Rank(1))


@pytest.mark.parametrize(
    "option", [{"min_rank": 1}, {"max_rank": 1}, {"multiple_of": 2}]
)
def test_bounds_of_ranks_are_refused(option):
    parts = diagonal(a=[6.0, 2.0])
    policy = dataclasses.replace(para.Rank(1), **option)

    with pytest.raises(ValueError, match="not for scores"):
        posthoc.choose(parts, sigma(parts), policy)
