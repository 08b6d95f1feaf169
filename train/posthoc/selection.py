"""The best components by any score, within a budget. Runs on the host.

With the singular values as the score, this is `para_jax.masks`, and the budgets are its
policies. Any other score may prefer a later component of a module to an earlier one, so
the kept ones are a set and not a prefix.

`N` components in all, `k` of one module.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from para_jax import Budget, Pool, pool
from train.posthoc.components import Components, Masks

Scores = Mapping[str, Float[np.ndarray, " k"]]


def choose(
    components: Mapping[str, Components], scores: Scores, policy: Budget
) -> dict[str, Bool[np.ndarray, " k"]]:
    """Select the components with the highest scores, within the budget.

    Components are bought in the order of their scores until the next one does not
    fit: none is skipped for a cheaper one after it, so children nest. Of equal
    scores, the earlier layer's goes first. Components that count as zero are never
    bought.

    With `scope="local"` every module buys equally many, its own best first; with
    the rest, `remainder="greedy"` buys one more for the modules with the highest
    next scores. So global and local children have the same total of ranks, and
    below one rank a module a local child has one component of each of some modules.

    Args:
      components: The parent's.
      scores: The score of each component, `[k]` by path. Higher is better.
      policy: `Rank`, `Gamma`, `Params` or `Bytes`. Its score is not used.

    Raises:
      ValueError: if a score is missing or NaN, the policy asks for what only sorted
        components can give, or its budget is impossible.
    """
    _check(components, scores, policy)
    layout = pool({path: x.spectrum for path, x in components.items()})
    # In NumPy: selection is host code, and float64.
    score = layout.gather(scores, np)
    allowed = layout.gather({path: x.resolved for path, x in components.items()}, np)
    cost, budget = policy.costs(layout), int(policy.budget(layout))
    late = np.zeros_like(allowed)
    if policy.scope == "local":
        place = _places(layout, score, allowed)
        # Equal shares: the budget divided by the price of one component a module.
        share = budget // int(cost[layout.start].sum())
        late = place >= share
        # The greedy remainder lets each module buy one component beyond its share.
        allowed &= place < share + (policy.remainder == "greedy")
    # lexsort takes ascending keys; the score is negated.
    order = np.lexsort((-score, late, ~allowed))  # Stable; its last key counts first.
    keep = np.empty_like(allowed)
    # The first components in order, while they can be paid for.
    keep[order] = np.cumsum(cost[order]) <= budget
    return layout.scatter(keep & allowed)


def drop_top(components: Mapping[str, Components], count: int) -> Masks:
    """Return all components but the `count` strongest of the model (Figure 3).

    The kept components are the ones that PARA drops at the same budget.

    Args:
      components: The parent's.
      count: The number of components to drop, from 0 to all.

    Raises:
      ValueError: if the parent has fewer components.
    """
    layout = pool({path: x.spectrum for path, x in components.items()})
    s = layout.gather({path: x.s for path, x in components.items()}, np)
    resolved = layout.gather({path: x.resolved for path, x in components.items()}, np)
    if not 0 <= count <= resolved.sum():
        raise ValueError(
            f"Cannot drop {count} components, expected 0 to {resolved.sum()}: all that "
            "are not zero."
        )
    keep = resolved.copy()
    # Unresolved components come last, so they are never among the dropped.
    keep[np.lexsort((-s, ~resolved))[:count]] = False
    return layout.scatter(keep)


def _places(
    layout: Pool, score: Float[np.ndarray, " N"], allowed: Bool[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """Return the place of each component in its module's order, the best at 0."""
    # Within modules: the module is the first key.
    order = np.lexsort((-score, ~allowed, layout.module))
    places = np.empty_like(layout.index)
    places[order] = layout.index  # Modules stay where they are, and count up.
    return places


def _check(
    components: Mapping[str, Components], scores: Scores, policy: Budget
) -> None:
    if policy.min_rank or policy.max_rank is not None or policy.multiple_of > 1:
        raise ValueError(
            f"{policy.name}: bounds and multiples of ranks are not for scores. Use "
            "para_jax.compress."
        )
    if policy.ties != "exact":
        raise ValueError(f"{policy.name}: ties are '{policy.ties}', expected 'exact'.")
    for path, x in components.items():
        got = scores.get(path)
        if got is None or got.shape != x.s.shape or np.isnan(got).any():
            raise ValueError(
                f"'{path}' has the scores {got}, expected {len(x.s)} numbers."
            )
