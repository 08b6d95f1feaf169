"""Test the table of policies, and the interface each of them must implement."""

import numpy as np
import pytest

import para_jax
from para_jax import Budget, Epsilon, Gamma, Params, Policy, Rank, Threshold
from para_jax._pruning.abstract_policies import Cutoff
from para_jax._pruning.policies import POLICIES

VALUES = {
    "gamma": 0.5,
    "rank": 2,
    "epsilon": 0.9,
    "threshold": 1.5,
    "params": 60,
    "bytes": 240,
}


@pytest.fixture
def spectra():
    rng = np.random.default_rng(0)
    shapes = {"up": (5, 7, 3), "down": (7, 5, 4)}
    return para_jax.decompose(
        {
            path: para_jax.Adapter(rng.normal(size=(m, r)), rng.normal(size=(r, n)))
            for path, (m, n, r) in shapes.items()
        }
    )


def test_every_policy_is_in_the_table_by_its_kind():
    names = (getattr(para_jax, name) for name in dir(para_jax))
    public = {x for x in names if isinstance(x, type)}
    found = {x for x in public if issubclass(x, Policy)} - {Policy, Budget}

    assert set(POLICIES.values()) == found
    assert all(name == kind.kind for name, kind in POLICIES.items())


@pytest.mark.parametrize("name", POLICIES)
def test_the_traced_and_the_exact_choice_of_a_policy_agree(name, spectra):
    policy = POLICIES[name](VALUES[name])

    masks, ranks = para_jax.masks(spectra, policy), para_jax.ranks(spectra, policy)

    assert {path: int(x.sum()) for path, x in masks.items()} == ranks
    assert 0 < sum(ranks.values()) < 7


@pytest.mark.parametrize("kind", [Budget, Cutoff])
def test_a_policy_without_a_rule_of_its_own_cannot_be_made(kind):
    with pytest.raises(TypeError, match="abstract"):
        kind(0.5)


@pytest.mark.parametrize(
    ("policy", "ranks"),
    [
        (Gamma(0.5), 3),
        (Rank(2), 4),
        (Params(60), None),
        (Epsilon(0.9), None),
        (Threshold(1.5), None),
    ],
)
def test_only_a_budget_of_ranks_promises_ranks(policy, ranks, spectra):
    assert policy.rank_budget(para_jax.pool(spectra)) == ranks


class TopTwo(Cutoff):
    """Keep the two largest values of the model, and all equal ones."""

    kind = "top-two"

    def reached(self, found, xp):
        return found.s >= xp.sort(found.s)[-2]

    def near_ties(self, choice, error):
        return iter(())


def test_a_cutoff_of_a_users_own_needs_no_change_elsewhere(spectra):
    s = np.sort(np.concatenate([np.asarray(x.s) for x in spectra.values()]))

    ranks = para_jax.ranks(spectra, TopTwo(0))

    want = {path: int((np.asarray(x.s) >= s[-2]).sum()) for path, x in spectra.items()}
    assert ranks == want
