"""Test a report's totals, and those of whole families, against loops in NumPy."""

import math

import numpy as np
import pytest

import para_jax
from para_jax import Adapter, Epsilon, Gamma, Rank

BUDGETS = [Gamma(i / 16) for i in range(1, 17)]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def parent():
    """Return kernels of several shapes, ranks and dtypes, one of them zero."""
    return {
        "layer/10/up": Adapter(normal(13, 4), normal(4, 7, seed=1), 0.5),
        "layer/2/up": Adapter(normal(13, 4, seed=2), normal(4, 7, seed=3), 0.5),
        "mlp": Adapter(
            np.float32(normal(2, 3, 17, 5, seed=4)),
            np.float32(normal(2, 3, 5, 11, seed=5)),
            nominal=3,
        ),
        "wide": Adapter(normal(3, 6, seed=6), normal(6, 19, seed=7), -2.0),
        "zero": Adapter(normal(5, 2, seed=8), np.zeros((2, 5))),
    }


def modules():
    """Return `(m, n, r, nominal, bytes of a parameter, s)` of each kernel, in order."""
    found, adapters = {}, parent()
    for path in ("layer/2/up", "layer/10/up", "mlp", "wide", "zero"):
        x = adapters[path]
        for index in np.ndindex(x.a.shape[:-2]):
            a, b = np.float64(x.a[index]), np.float64(x.b[index])
            (m, r), n = a.shape, b.shape[1]
            s = np.linalg.svd(x.scale * a @ b, compute_uv=False)[: min(m, r, n)]
            name = "/".join([path, *map(str, index)])
            nominal = min(x.nominal or r, len(s))
            found[name] = (m, n, r, nominal, x.a.dtype.itemsize, s)
    return found


def largest(count):
    """Return the rank of each kernel if the `count` largest values are kept."""
    values = [(s, name) for name, x in modules().items() for s in x[-1] if s > 1e-9]
    ranks = dict.fromkeys(modules(), 0)
    for _, name in sorted(values, reverse=True)[:count]:
        ranks[name] += 1
    return ranks


def totals(ranks):
    """Return what a report adds up, by a loop over the kernels."""
    want = dict.fromkeys(("parameters", "parent_parameters", "bytes"), 0)
    want |= {"total_rank": 0, "kept_rank": 0, "max_rank": 0}
    kept, whole, least = 0.0, 0.0, math.inf
    for name, (m, n, r, nominal, itemsize, s) in modules().items():
        k = ranks[name]
        want["parameters"] += k * (m + n)
        want["parent_parameters"] += r * (m + n)
        want["bytes"] += k * (m + n) * itemsize
        want["total_rank"] += nominal
        want["kept_rank"] += k
        want["max_rank"] = max(want["max_rank"], k)
        kept, whole = kept + (s[:k] ** 2).sum(), whole + (s**2).sum()
        least = min(least, s[:k].min(initial=math.inf))
    floats = {"threshold": least, "energy": kept / whole}
    floats["average_rank"] = want["kept_rank"] / len(modules())
    floats["error"] = math.sqrt(1 - floats["energy"])
    return want, floats


def check(child, ranks):
    whole, floats = totals(ranks)
    found = child.report
    assert list(child.report.ranks.items()) == list(ranks.items())
    assert {path: x.rank for path, x in child.adapters.items()} == {
        path: rank for path, rank in ranks.items() if rank
    }
    assert {name: getattr(found, name) for name in whole} == whole
    assert {type(getattr(found, name)) for name in whole} == {int}
    for name, want in floats.items():
        got = getattr(found, name)
        assert type(got) is float
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    assert [x.kept for x in found.modules] == list(ranks.values())
    for x in found.modules:
        np.testing.assert_allclose(x.sigma, modules()[x.path][-1], atol=1e-6)
    gone = {p: modules()[p][:2] for p, rank in ranks.items() if not rank}
    assert child.absent == gone
    assert child.provenance["cuts"][-1]["ranks"] == ranks


@pytest.mark.parametrize("form", ["ragged", "padded"])
def test_every_child_of_a_family_has_the_totals_of_a_loop(form):
    whole = sum(x[3] for x in modules().values())

    family = para_jax.family(parent(), BUDGETS, form=form)

    for budget, child in zip(BUDGETS, family, strict=True):
        ranks = largest(math.floor(budget.value * whole))
        if form == "ragged":
            check(child, ranks)
        else:
            assert child.report.ranks == ranks
    assert len({x.report.kept_rank for x in family}) == len(BUDGETS)


@pytest.mark.parametrize("policy", [Rank(0), Rank(1), Epsilon(1.0), Gamma(0.5)])
def test_one_child_has_the_totals_of_a_loop(policy):
    child = para_jax.compress(parent(), policy)

    count = child.report.kept_rank
    if policy.kind == "epsilon":
        assert count == sum((x[-1] > 1e-9).sum() for x in modules().values())
    check(child, largest(count)) if count else check_nothing(child)


def check_nothing(child):
    assert child.adapters == {}
    assert (child.report.threshold, child.report.energy) == (math.inf, 0.0)
    assert child.report.summary()["threshold"] is None
    assert (child.report.max_rank, child.report.bytes) == (0, 0)


def test_a_family_of_all_kinds_is_its_members_one_by_one():
    policies = [Rank(1), Epsilon(0.5), Gamma(0.75, scope="local"), Rank(2, max_rank=3)]

    for child, policy in zip(
        para_jax.family(parent(), policies), policies, strict=True
    ):
        alone = para_jax.compress(parent(), policy)
        assert child.report.as_dict() == alone.report.as_dict()
        assert child.absent == alone.absent
        for path, x in alone.adapters.items():
            np.testing.assert_allclose(child.adapters[path].a, x.a, rtol=1e-6)
            np.testing.assert_allclose(child.adapters[path].b, x.b, rtol=1e-6)
