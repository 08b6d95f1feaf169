"""Which components a policy keeps: ragged rank masks.

Two faces of one rule. `masks` is traced: arrays in, arrays out, static shapes, inside
`jit`. `exact_masks` and `ranks` are for the host: float64, for what goes to a file.
`N` components in the pool, `q` the block that `multiple_of` asks for.
"""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters import precision
from para_jax._pruning.decompose import Spectra
from para_jax._pruning.policies import Budget, Epsilon, Gamma, Policy, Threshold
from para_jax._pruning.pool import Pool, pool
from para_jax.linalg import energy, sharding
from para_jax.linalg.tolerances import RESOLUTION


@precision.kept
def masks(spectra: Spectra, policy: Policy) -> dict[str, jax.Array]:
    """Returns which components `policy` keeps: booleans `[*stack, k]` by path.

    One row a module. A row's number of true values is the module's rank; the shapes
    are those of the singular values, whatever is kept, so this works under `jit`.

    The policy may be an argument of the compiled function: one program serves every
    value. A traced budget that is impossible raises nothing and warns of nothing: it is
    brought up to what `min_rank` takes, and down to all there is.

    Example:
      >>> spectra = para_jax.decompose(adapters)
      >>> kept = jax.jit(para_jax.masks)(spectra, para_jax.Gamma(0.25))
      >>> {path: int(mask.sum(-1)) for path, mask in kept.items()}  # The ranks.
      {'down': 0, 'up': 1}
      >>> many = para_jax.Gamma(jnp.linspace(0.1, 1.0, 10))
      >>> jax.vmap(para_jax.masks, in_axes=(None, 0))(spectra, many)["up"].shape
      (10, 4)

    Args:
      spectra: The spectra of all modules. They are pooled.
      policy: What to keep.

    Raises:
      ValueError: if the policy's budget is known, and impossible for these modules; or
        is more than one.
    """
    policy = _single(policy)
    layout = pool(spectra)

    def chosen(s: dict[str, Any], policy: Policy = policy) -> dict[str, jax.Array]:
        pooled = layout.gather(sharding.replicated(s), jnp)
        kept = layout.scatter(_select(pooled, layout, policy, jnp))
        return sharding.replicated(kept)

    # A known budget has to stay known, and an argument may become an array.
    traced = [policy] if policy.is_traced else []
    s = {path: x.s for path, x in spectra.items()}
    kept = sharding.in_place(chosen, s, *traced)
    return {path: kept[path] for path in layout.shapes}


def exact_masks(spectra: Spectra, policy: Policy) -> dict[str, np.ndarray]:
    """Returns what `masks` returns, selected in float64 on the host.

    Raises:
      ValueError: as `masks`, and if the policy is traced.
    """
    policy = _single(policy)
    if policy.is_traced:
        raise ValueError(
            f"The value of this {policy.kind} is traced, and a rank must be known. "
            "Inside jit, use masks and repack(form='masked')."
        )
    layout = pool(spectra)
    s = {path: np.asarray(x.s, np.float64) for path, x in spectra.items()}
    return layout.scatter(_select(layout.gather(s, np), layout, policy, np))


def ranks(spectra: Spectra, policy: Policy) -> dict[str, np.ndarray]:
    """Returns the rank of each module, exactly: integers `[*stack]` by path.

    Example:
      >>> found = para_jax.ranks(para_jax.decompose(adapters), para_jax.Gamma(0.5))
      >>> {path: int(x) for path, x in found.items()}
      {'down': 1, 'up': 2}

    Args:
      spectra: Concrete arrays: a rank becomes a shape.
      policy: What to keep.

    Raises:
      ValueError: as `exact_masks`.
    """
    found = exact_masks(spectra, policy)
    return {path: np.asarray(mask.sum(-1)) for path, mask in found.items()}


def _single(policy: Policy) -> Policy:
    """Returns the policy, its value a checked number unless it is traced.

    Raises:
      TypeError: if it is none that the rules of this module are for.
      ValueError: if it holds several values.
    """
    if not isinstance(policy, Budget | Epsilon | Threshold):
        raise TypeError(
            f"Expected a policy (Gamma, Rank, Params, Bytes, Epsilon, Threshold, or a "
            f"subclass of one), got {type(policy).__name__}."
        )
    if np.shape(policy.value):
        raise ValueError(
            f"{policy.kind} holds values of shape {list(np.shape(policy.value))}, "
            "expected one. Map over them with jax.vmap."
        )
    if policy.is_traced or not isinstance(policy.value, jax.Array | np.ndarray):
        return policy
    return dataclasses.replace(policy, value=jax.device_get(policy.value).item())


def _select(s: Any, layout: Pool, policy: Policy, xp: Any) -> Any:
    """Returns the mask `[N]` of the kept components; `xp` is `jnp` or `np`."""
    if not isinstance(policy, Threshold):
        s = energy.near_one(s, xp)
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


def _limits(layout: Pool, policy: Policy) -> tuple[Any, Any]:
    """Returns how many components each one's module must and may keep, `[N]` each.

    A local budget is one where the two are (almost) equal: every module must keep
    its even share.
    """
    xp = jnp if policy.is_traced else np
    q, size = policy.multiple_of, layout.sizes[layout.module]
    low, high = -(-policy.min_rank // q) * q, size
    if policy.max_rank is not None:
        high = np.where(size <= policy.max_rank, size, policy.max_rank // q * q)
    if isinstance(policy, Budget) and policy.scope == "local":
        price = int(policy.costs(layout)[layout.start].sum())
        share = xp.asarray(policy.budget(layout) // price).astype(int)
        low = xp.maximum(low, share // q * q)
        high = xp.minimum(high, low + q if policy.remainder == "greedy" else low)
    return xp.minimum(low, high), high


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
    order = _falling_order(worth, xp)
    rest_of_block = (size - 1 - layout.index % policy.multiple_of) * cost
    spent = xp.cumsum(xp.asarray(cost)[order]) + xp.asarray(rest_of_block)[order]
    keep = candidate & _unsorted(spent <= budget, order, xp)
    if policy.ties == "threshold":
        keep = candidate & (worth >= xp.where(keep, worth, np.inf).min())
    return keep


def _falling_order(values: Any, xp: Any) -> Any:
    """Returns the places of the values, the largest first; of equal ones the first."""
    if xp is np:
        return np.argsort(-values, stable=True)
    place = jax.lax.iota(np.int32, values.shape[0])  # An argsort moves int64.
    return jax.lax.sort((-values, place), num_keys=1, is_stable=True)[1]


def _unsorted(values: Any, order: Any, xp: Any) -> Any:
    """Returns `values[order]` in their places before: a second sort would cost more."""
    if xp is jnp:
        return jnp.zeros_like(values).at[order].set(values, unique_indices=True)
    result = np.empty_like(values)
    result[order] = values
    return result


def _prices(layout: Pool, policy: Budget) -> tuple[np.ndarray, Any]:
    """Returns what components cost and the budget, in the largest unit of both.

    Raises:
      ValueError: if the budget is known, and cannot pay for `min_rank`.
    """
    cost, budget = policy.costs(layout), policy.budget(layout)
    unit = int(np.gcd.reduce(cost))  # Bytes of a large model do not fit 32 bits.
    forced = layout.index < _limits(layout, policy)[0]
    if isinstance(budget, jax.Array):
        needed = jnp.where(forced, cost // unit, 0).sum()
        return cost // unit, jnp.maximum((budget // unit).astype(needed.dtype), needed)
    if isinstance(policy, Gamma) and policy.value * layout.total_rank < 1 - 1e-9:
        warnings.warn(
            f"{policy.name} of {layout.total_rank} ranks is less than one: kept one.",
            stacklevel=2,
        )
    if (needed := int(cost[forced].sum())) > budget:
        raise ValueError(
            f"{policy.name}: min_rank {policy.min_rank} for {layout.modules} modules "
            f"takes {needed}, the budget is {budget}. Lower one or raise the other."
        )
    return cost // unit, budget // unit


def _above(s: Any, layout: Pool, policy: Policy, candidate: Any, xp: Any) -> Any:
    """Returns which components reach the policy's threshold."""
    if isinstance(policy, Threshold):
        return s >= xp.asarray(policy.value, s.dtype)
    dropped = 1 - (policy.value if policy.is_traced else float(policy.value))
    dropped = xp.asarray(dropped, s.dtype)
    if policy.scope == "global":
        return s >= _energy_threshold(s[None], candidate[None], dropped, xp)
    place, exists = _rows(layout)
    rows = energy.near_one(xp.where(exists, s[place], 0), xp, axis=-1)
    tau = _energy_threshold(rows, candidate[place] & exists, dropped, xp)
    return (rows >= tau[:, None])[layout.module, layout.index]


def _energy_threshold(s: Any, candidate: Any, share: Any, xp: Any) -> Any:
    """Returns the largest tau of each row that drops at most `share` of the energy.

    The dropped tail is summed from its small end: in float32, a sum from the large
    end never reaches the total, and epsilon = 1 would keep nothing sensible.
    """
    values = xp.sort(xp.where(candidate, s, 0), axis=-1)  # Ascending.
    squares = values * values
    excluded = xp.where(candidate, 0, s * s).sum(-1, keepdims=True)
    below = xp.cumsum(squares, axis=-1)[:, :-1]
    dropped = excluded + xp.concatenate([xp.zeros_like(excluded), below], axis=-1)
    allowed = share * (squares.sum(-1, keepdims=True) + excluded)
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
