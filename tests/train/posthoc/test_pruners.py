"""One contract for all pruners: the same budgets, from the same parent."""

import jax
import numpy as np
import pytest

import para_jax as para
from train import posthoc
from train.posthoc import activations, examples, fisher

BUDGETS = (0.5, 1, 2.25, 3)


def dense(adapter):
    a, b = np.asarray(adapter.a, np.float64), np.asarray(adapter.b, np.float64)
    return adapter.scale * a @ b


def total(child):
    return sum(x.rank for x in child.values())


@pytest.mark.parametrize("name", posthoc.PRUNERS)
def test_every_pruner_keeps_the_contract(parent, name):
    ranking = posthoc.PRUNERS[name](parent)

    assert ranking.components.keys() == ranking.scores.keys() == parent.adapters.keys()
    for rank in BUDGETS:
        for scope in ("global", "local"):
            policy = para.Rank(rank, scope=scope, remainder="greedy")
            child = posthoc.prune(ranking, policy)
            assert total(child) == int(12 * rank)
            assert all(x.scale == 1 and x.a.dtype == np.float32 for x in child.values())
    for path, x in child.items():  # The last is the whole parent.
        np.testing.assert_allclose(dense(x), dense(parent.adapters[path]), atol=1e-4)
    few = posthoc.prune(ranking, para.Params(100))
    assert 0 < sum(x.parameters for x in few.values()) <= 100


def test_sigma_is_para(parent):
    ranking = posthoc.PRUNERS["sigma"](parent)

    for policy in (para.Rank(1), para.Gamma(0.25), para.Rank(1, scope="local")):
        got = posthoc.prune(ranking, policy)

        want = para.compress(parent.adapters, policy).adapters
        assert got.keys() == want.keys()
        for path, x in got.items():
            np.testing.assert_allclose(dense(x), dense(want[path]), atol=1e-5)


def test_fisher_and_sensitivity_are_one_information(parent):
    parts = posthoc.decompose(parent.adapters)
    sample = examples.batches(parent.validation, size=3, count=2)
    found = fisher.fisher(parent.model, parent.params, parts, sample)

    scores = posthoc.PRUNERS["fisher"](parent).scores
    sensitivity = posthoc.PRUNERS["sensitivity"](parent).scores

    for path, x in parts.items():
        want = np.asarray(found[path].u + found[path].s + found[path].vt)
        np.testing.assert_allclose(scores[path], want, rtol=1e-5)
        np.testing.assert_allclose(
            sensitivity[path], x.s**2 * np.asarray(found[path].s) / 2, rtol=1e-5
        )


def test_whitened_children_change_the_outputs_least_in_their_own_metric(parent):
    ranking = posthoc.PRUNERS["whitened"](parent)
    plain = posthoc.PRUNERS["sigma"](parent)
    batches = examples.batches(parent.validation, size=3, count=2).inputs
    found = jax.device_get(
        activations.moments(parent.model, parent.params, parent.adapters, batches)
    )

    def lost(ranking):
        child, result = posthoc.prune(ranking, para.Rank(1)), 0.0
        for path, x in parent.adapters.items():
            # delta = a @ w for some w: the Gram matrix of x @ a says it all.
            pinv = np.linalg.pinv(np.asarray(x.a, np.float64))
            rest = dense(x) - (dense(child[path]) if path in child else 0)
            w = pinv @ rest
            result += np.trace(w.T @ np.asarray(found[path].gram, np.float64) @ w)
        return result

    assert lost(ranking) < lost(plain)


def test_pruners_look_at_no_label_unless_they_say_so(parent):
    labels = (parent.validation.labels + 1) % 3
    other = posthoc.Parent(
        **{**vars(parent), "validation": parent.validation._replace(labels=labels)}
    )

    def same(name):
        pruner = posthoc.PRUNERS[name]
        found = (pruner(x).scores for x in (parent, other))
        return all(
            np.array_equal(x, y) for x, y in zip(*map(dict.values, found), strict=True)
        )

    assert same("whitened")
    assert same("whitened-diagonal")
    assert not same("fisher")
