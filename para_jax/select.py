"""Which components a policy keeps: ragged rank masks.

Two faces of one rule. `masks` is traced: arrays in, arrays out, static shapes, inside
`jit`. `exact_masks` and `ranks` are for the host: float64, for what goes to a file.
`N` components in the pool, `q` the block that `multiple_of` asks for.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax.policy import Budget, Gamma, Policy, Threshold
from para_jax.pool import Pool, pool
from para_jax.spectrum import RESOLUTION, Spectra


def masks(spectra: Spectra, policy: Policy) -> dict[str, jax.Array]:
    """Returns which components `policy` keeps: booleans `[*stack, k]` by path.

    One row a module. A row's number of true values is the module's rank; the shapes
    are those of the singular values, whatever is kept, so this works under `jit`.

    Example:
      >>> spectra = para_jax.decompose(adapters)
      >>> kept = para_jax.masks(spectra, para_jax.Gamma(0.25))
      >>> {path: mask.sum(-1) for path, mask in kept.items()}  # The ranks.

    Args:
      spectra: The spectra of all modules. They are pooled.
      policy: What to keep.

    Raises:
      ValueError: if the policy's budget is impossible for these modules.
    """
    layout = pool(spectra)
    s = layout.gather({path: x.s for path, x in spectra.items()}, jnp)
    return layout.scatter(_select(s, layout, policy, jnp))


def exact_masks(spectra: Spectra, policy: Policy) -> dict[str, np.ndarray]:
    """Returns what `masks` returns, selected in float64 on the host.

    Raises:
      ValueError: as `masks`.
    """
    layout = pool(spectra)
    s = {path: np.asarray(x.s, np.float64) for path, x in spectra.items()}
    return layout.scatter(_select(layout.gather(s, np), layout, policy, np))


def ranks(spectra: Spectra, policy: Policy) -> dict[str, np.ndarray]:
    """Returns the rank of each module, exactly: integers `[*stack]` by path.

    Args:
      spectra: Concrete arrays: a rank becomes a shape.
      policy: What to keep.

    Raises:
      ValueError: as `masks`.
    """
    found = exact_masks(spectra, policy)
    return {path: np.asarray(mask.sum(-1)) for path, mask in found.items()}


def _select(s: Any, layout: Pool, policy: Policy, xp: Any) -> Any:
    """Returns the mask `[N]` of the kept components; `xp` is `jnp` or `np`."""
    low, high = _limits(layout, policy)
    # What float32 factors do not resolve is zero, and never worth its parameters.
    eps = (layout.rank * RESOLUTION).astype(s.dtype)
    resolved = s > eps * s[layout.start[layout.module]]
    candidate = resolved & (layout.index < high)
    forced = candidate & (layout.index < low)
    if isinstance(policy, Budget):
        return _spend(s, layout, policy, candidate, forced, xp)
    keep = forced | (candidate & _above(s, layout, policy, candidate, xp))
    members, valid = _blocks(layout, policy.multiple_of)
    return candidate & (keep[members] & valid).any(-1)


def _limits(layout: Pool, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many components each one's module must and may keep, `[N]` each.

    A local budget is one where the two are (almost) equal: every module must keep
    its even share.
    """
    q, size = policy.multiple_of, layout.sizes[layout.module]
    low, high = -(-policy.min_rank // q) * q, size
    if policy.max_rank is not None:
        high = np.where(size <= policy.max_rank, size, policy.max_rank // q * q)
    if isinstance(policy, Budget) and policy.scope == "local":
        share = policy.budget(layout) // policy.costs(layout)[layout.start].sum()
        low = max(low, share // q * q)
        high = np.minimum(high, low + q if policy.remainder == "greedy" else low)
    return np.minimum(low, high), high


def _spend(
    s: Any, layout: Pool, policy: Budget, candidate: Any, forced: Any, xp: Any
) -> Any:
    """Returns the components that the budget buys, the most valuable blocks first.

    They are a prefix of one order, so children nest. The order is stable: of equal
    components, the earlier layer's come first.
    """
    cost, budget = _prices(layout, policy)
    members, valid = _blocks(layout, policy.multiple_of)
    size = valid.sum(-1)
    value = xp.where(candidate, s * s / cost.astype(s.dtype), 0)
    worth = xp.where(valid, value[members], 0).sum(-1) / size.astype(s.dtype)
    worth = _falling(worth, layout, xp)
    worth = xp.where(forced, np.inf, xp.where(candidate, worth, -np.inf))
    order = xp.argsort(-worth, stable=True)
    rest_of_block = (size - 1 - layout.index % policy.multiple_of) * cost
    spent = xp.cumsum(xp.asarray(cost)[order]) + xp.asarray(rest_of_block)[order]
    keep = candidate & (spent <= budget)[xp.argsort(order)]
    if policy.ties == "threshold":
        keep = candidate & (worth >= xp.where(keep, worth, np.inf).min())
    return keep


def _prices(layout: Pool, policy: Budget) -> tuple[np.ndarray, int]:
    """Returns what components cost and the budget, in the largest unit of both.

    Raises:
      ValueError: if the budget cannot pay for `min_rank`.
    """
    cost, budget = policy.costs(layout), policy.budget(layout)
    if isinstance(policy, Gamma) and policy.value * layout.total_rank < 1 - 1e-9:
        warnings.warn(
            f"{policy.name} of {layout.total_rank} ranks is less than one: kept one.",
            stacklevel=2,
        )
    needed = int(cost[layout.index < _limits(layout, policy)[0]].sum())
    if needed > budget:
        raise ValueError(
            f"{policy.name}: min_rank {policy.min_rank} for {layout.modules} modules "
            f"takes {needed}, the budget is {budget}. Lower one or raise the other."
        )
    unit = np.gcd.reduce(cost)  # Bytes of a large model do not fit 32 bits.
    return cost // unit, budget // int(unit)


def _above(s: Any, layout: Pool, policy: Policy, candidate: Any, xp: Any) -> Any:
    """Returns which components reach the policy's threshold."""
    if isinstance(policy, Threshold):
        return s >= policy.value
    if policy.scope == "global":
        return s >= _energy_threshold(s[None], candidate[None], float(policy.value), xp)
    place, exists = _rows(layout)
    tau = _energy_threshold(
        xp.where(exists, s[place], 0),
        candidate[place] & exists,
        float(policy.value),
        xp,
    )
    return s >= tau[layout.module]


def _energy_threshold(s: Any, candidate: Any, epsilon: float, xp: Any) -> Any:
    """Returns the largest tau of each row that keeps the share `epsilon` of energy.

    The dropped tail is summed from its small end: in float32, a sum from the large
    end never reaches the total, and epsilon = 1 would keep nothing sensible.
    """
    values = xp.sort(xp.where(candidate, s, 0), axis=-1)  # Ascending.
    squares = values * values
    excluded = xp.where(candidate, 0, s * s).sum(-1, keepdims=True)
    below = xp.cumsum(squares, axis=-1)[:, :-1]
    dropped = excluded + xp.concatenate([xp.zeros_like(excluded), below], axis=-1)
    allowed = (1 - epsilon) * (squares.sum(-1, keepdims=True) + excluded)
    allowed = allowed * (1 + 8 * float(np.finfo(s.dtype).eps))
    reached = xp.where(dropped <= allowed, values, 0)
    return reached.max(-1)


def _falling(worth: Any, layout: Pool, xp: Any) -> Any:
    """Returns `worth` no larger than that of any earlier component of its module.

    It is so by itself, but for the rounding of a block's mean: a module must not buy
    its last components before its first.
    """
    running_min = np.minimum.accumulate if xp is np else jax.lax.cummin
    place, _ = _rows(layout)
    return running_min(worth[place], axis=1)[layout.module, layout.index]


def _rows(layout: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the components of each module in a row, `[M, K]`, and which exist."""
    column = np.arange(layout.sizes.max())
    exists = column < layout.sizes[:, None]
    return layout.start[:, None] + np.where(exists, column, 0), exists


def _blocks(layout: Pool, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the components of each one's block, `[N, q]`, and which of them exist."""
    start = layout.start[layout.module]
    index = (layout.index // q * q)[:, None] + np.arange(q)
    valid = index < layout.sizes[layout.module][:, None]
    return start[:, None] + np.where(valid, index, 0), valid
