"""Spending a budget: on the most valuable blocks of components, until it is spent.

Blocks are bought in one order, and none is skipped for a cheaper one after it. So the
purchase of a budget is a prefix of that of a larger one, and children nest.

`N` components in the pool, `q` the length of a block (`multiple_of`).

Traceable under `jit`, and the same text on NumPy arrays: `xp` is `jax.numpy` or
`numpy`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._pruning.pool import Places, Pool


class Candidates(NamedTuple):
    """The components for a policy to choose from.

    Attributes:
      pool: Their modules.
      s: Their scores, by default the singular values, `[N]`.
      allowed: Which may be kept: not zero, and within `max_rank`, `[N]`.
      forced: Which of them have to be kept, for `min_rank`, `[N]`.
    """

    pool: Pool
    s: Any
    allowed: Any
    forced: Any


class Prices(NamedTuple):
    """The prices of components and the budget, both in the same unit.

    Attributes:
      cost: The price of each component, `[N]`.
      divisor: What the square of its score is divided by to give its worth, `[N]`.
      budget: A whole number; a scalar array if the policy's value is traced.
    """

    cost: np.ndarray
    divisor: np.ndarray
    budget: Any


def spend(found: Candidates, prices: Prices, q: int, xp: Any, *, ties: bool) -> Any:
    """Return the components to buy for the budget, `[N]`.

    Args:
      found: The components to choose from.
      prices: Their prices, and the budget.
      q: The length of a block.
      xp: `numpy`, or `jax.numpy` while tracing.
      ties: Whether to buy all components of the last one's worth too.
    """
    block = found.pool.blocks(q)
    worth = _worth(found, prices.divisor, block, xp)
    # The sort is stable: of equal components, the earlier layer's come first.
    order = _falling_order(worth, xp)
    size = block.exists.sum(-1)
    rest_of_block = (size - 1 - found.pool.index % q) * prices.cost
    bill = _bill(prices.cost, rest_of_block, order, xp)
    kept = found.allowed & _unsorted(bill <= prices.budget, order, xp)
    if ties:
        kept = found.allowed & (worth >= xp.where(kept, worth, np.inf).min())
    return kept


def _worth(found: Candidates, divisor: np.ndarray, block: Places, xp: Any) -> Any:
    """Return the worth of each component: its block's mean energy, divided, `[N]`.

    It is infinite for forced components, and minus infinity for those not allowed.
    """
    s, size = found.s, block.exists.sum(-1)
    # Energy, not the value itself: the error of a child is a sum of squares.
    value = xp.where(found.allowed, s * s / divisor.astype(s.dtype), 0)
    mean = xp.where(block.exists, value[block.place], 0).sum(-1) / size.astype(s.dtype)
    mean = _falling(mean, found.pool, xp)
    return xp.where(found.forced, np.inf, xp.where(found.allowed, mean, -np.inf))


def _falling(worth: Any, pool: Pool, xp: Any) -> Any:
    """Return `worth`, but no larger than any earlier component's of the same module.

    Means of blocks fall by themselves, but for rounding. A running minimum restores
    the order, so that a module never buys its last components before its first.
    """
    running_min = np.minimum.accumulate if xp is np else jax.lax.cummin
    return running_min(worth[pool.rows.place], axis=1)[pool.module, pool.index]


def _bill(cost: np.ndarray, rest_of_block: np.ndarray, order: Any, xp: Any) -> Any:
    """Return the sum spent with each component's whole block, in `order`.

    A block is bought whole: each component is charged with the rest of its block, so
    either all of a block is within the budget or none.
    """
    return xp.cumsum(xp.asarray(cost)[order]) + xp.asarray(rest_of_block)[order]


def _falling_order(values: Any, xp: Any) -> Any:
    """Return the places of the values, the largest first; of equal ones the first."""
    if xp is np:
        return np.argsort(-values, stable=True)
    place = jax.lax.iota(np.int32, values.shape[0])  # An argsort moves int64.
    return jax.lax.sort((-values, place), num_keys=1, is_stable=True)[1]


def _unsorted(values: Any, order: Any, xp: Any) -> Any:
    """Return `values[order]` in the original order.

    By a scatter, since a second sort would cost more.
    """
    if xp is jnp:
        return jnp.zeros_like(values).at[order].set(values, unique_indices=True)
    result = np.empty_like(values)
    result[order] = values
    return result
