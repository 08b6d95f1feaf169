"""The policies of the paper, and two budgets of ours, as small frozen values.

A policy looks at the pool of the singular values of all modules (`scope="global"`,
PARA) or at each module by itself (`scope="local"`, the paper's ablation). It either
spends a budget (`Gamma`, `Rank`, `Params`, `Bytes`), which it does not exceed, or cuts
at a threshold (`Epsilon`, `Threshold`). `abstract_policies.py` defines the interface.

Traceable under `jit`, like an array: the value is the one leaf of a pytree.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._pruning import comparisons
from para_jax._pruning.abstract_policies import (
    Budget as Budget,
    Cutoff,
    Policy as Policy,
)
from para_jax._pruning.comparisons import Choice, Found
from para_jax._pruning.pool import Pool
from para_jax._pruning.spending import Candidates
from para_jax.linalg import energy


class Gamma(Budget):
    """Keep the share `gamma` of all ranks: the paper's Eq. 12.

    `floor(gamma * total_rank)` components, the largest of the pool; at least one.
    """

    kind = "gamma"

    def _check(self, value: float) -> None:
        if not 0 < value <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {value:g}.")

    def budget(self, pool: Pool) -> int | jax.Array:
        """Return the share of all ranks, rounded down, but at least one."""
        budget = _times(self.value, pool.total_rank)
        # The paper's floor may be 0; a child of no rank at all is of no use.
        if isinstance(budget, jax.core.Tracer):
            return _clamped(budget, 1, pool.total_rank)
        # The small term makes 0.3 * 10 three, as in `_within`.
        return max(1, math.floor(budget + 1e-9))

    def warn(self, pool: Pool) -> None:
        """Warn if the share is less than one rank, and one is kept."""
        if self.value * pool.total_rank < 1 - 1e-9:
            warnings.warn(
                f"{self.name} of {pool.total_rank} ranks is less than one: kept one.",
                stacklevel=2,
            )


class Rank(Budget):
    """Keep an average number of ranks a module; `Gamma(rank / r)` keeps as many.

    `Rank(0)` keeps nothing.
    """

    kind = "rank"

    def _check(self, value: float) -> None:
        if value < 0:
            raise ValueError(f"A rank must not be negative, got {value:g}.")

    def budget(self, pool: Pool) -> int | jax.Array:
        """Return the number of ranks in all."""
        budget = _times(self.value, pool.modules)
        return _within(self, budget, pool.total_rank, 1, "ranks")


class Params(Budget):
    """Keep at most a number of parameters. Ours, not the paper's.

    A component of an `[m, n]` kernel costs `m + n` and is worth `sigma^2 / (m + n)`;
    with another score than `"sigma"`, its square, without the cost.
    """

    kind = "params"
    counts_ranks = False

    def costs(self, pool: Pool) -> np.ndarray:
        """Return the parameters of each component, `m + n`, `[N]`."""
        return pool.cost

    def budget(self, pool: Pool) -> int | jax.Array:
        """Return the budget, in parameters or bytes."""
        costs = self.costs(pool)
        whole = int((costs * pool.rank)[pool.start].sum())
        return _within(self, _times(self.value, 1), whole, int(costs.min()), self.kind)


class Bytes(Params):
    """Keep at most a number of bytes of factors, in the dtype of storage.

    Headers and tensors that are not LoRA factors do not count. Ours.
    """

    kind = "bytes"

    def costs(self, pool: Pool) -> np.ndarray:
        """Return the bytes of each component, `[N]`."""
        return pool.cost * pool.itemsize


class Epsilon(Cutoff):
    """Keep the share `epsilon` of the energy: the paper's Eq. 14.

    Cut at the largest threshold that keeps `epsilon` of the sum of squares. Equal
    values stay or go together. `Epsilon(1)` drops only what counts as zero.
    """

    kind = "epsilon"

    def _check(self, value: float) -> None:
        if not 0 < value <= 1:
            raise ValueError(f"epsilon must be in (0, 1], got {value:g}.")

    def reached(self, found: Candidates, xp: Any) -> Any:
        """Return the components from the threshold of this share up, `[N]`."""
        s, pool = found.s, found.pool
        share = 1 - (self.value if self.is_traced else float(self.value))
        share = xp.asarray(share, s.dtype)
        if self.scope == "global":
            tau = energy.threshold(s[None], found.allowed[None], share, xp)
            return s >= tau
        place, exists = pool.rows
        # A module's values may vanish beside another's; its own scale saves them.
        rows = energy.near_one(xp.where(exists, s[place], 0), xp, axis=-1)
        tau = energy.threshold(rows, found.allowed[place] & exists, share, xp)
        return (rows >= tau[:, None])[pool.module, pool.index]

    def near_ties(self, choice: Choice, error: float) -> Iterator[Found]:
        """Yield the components in doubtful order, and those of doubtful energy."""
        yield from comparisons.of_two_blocks(choice, choice.worth(), error)
        if self.value < 1:
            yield from comparisons.of_energy(choice, 1 - float(self.value), error)


class Threshold(Cutoff):
    """Keep the singular values from `tau` up: the paper's Eq. 2."""

    kind = "threshold"
    scale_free = False

    def _check(self, value: float) -> None:
        if value < 0:
            raise ValueError(f"A threshold must not be negative, got {value:g}.")

    def reached(self, found: Candidates, xp: Any) -> Any:
        """Return the components from the threshold up, `[N]`."""
        return found.s >= xp.asarray(self.value, found.s.dtype)

    def near_ties(self, choice: Choice, error: float) -> Iterator[Found]:
        """Yield the components within an error of the threshold."""
        return comparisons.with_threshold(choice, float(self.value), error)


POLICIES: dict[str, type[Budget] | type[Cutoff]] = {
    x.kind: x for x in (Gamma, Rank, Epsilon, Threshold, Params, Bytes)
}
"""Every policy by its kind."""


def check(policy: Any) -> None:
    """Check the type of `policy`.

    Raises:
      TypeError: if it is not a policy, such as a number.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"Expected a policy such as Gamma(0.25), got {policy!r}.")


def single(policy: Any) -> Budget | Cutoff:
    """Return the policy, its value a checked number unless it is traced.

    Raises:
      TypeError: if it is not a policy that can choose.
      ValueError: if it holds several values.
    """
    if not isinstance(policy, Budget | Cutoff):
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
    # A concrete array came from a device or a sweep: read it, and have it checked.
    return dataclasses.replace(policy, value=jax.device_get(policy.value).item())


def _within(
    policy: Policy, budget: float | jax.Array, whole: int, least: int, unit: str
) -> int | jax.Array:
    """Return the budget as a whole number, if it is possible for this parent."""
    if isinstance(budget, jax.core.Tracer):
        return _clamped(budget, 0, whole)
    # The small term makes 0.3 * 10 three, whatever floating point says.
    if budget + 1e-9 >= whole + 1:
        raise ValueError(
            f"{policy.name}: a budget of {budget:.10g} {unit} is above the parent's "
            f"{whole}. Ask for less."
        )
    result = math.floor(budget + 1e-9)
    if budget > 0 and result < least:
        raise ValueError(
            f"{policy.name}: a budget of {budget:.6g} {unit} is below one rank, "
            f"which takes at least {least}."
        )
    return result


def _times(value: Any, count: int) -> float | jax.Array:
    """Return `value * count`, rounded up by 2 ulp if traced.

    So the product of a fraction and a count does not end up just below an integer.
    """
    if not isinstance(value, jax.core.Tracer):
        return float(value) * count
    if count == 1 or jnp.issubdtype(value.dtype, jnp.integer):
        return value * count
    # float16 would overflow at 65504 ranks.
    wide = value.astype(np.promote_types(value.dtype, np.float32))
    return wide * count * (1 + 2 * float(jnp.finfo(wide.dtype).eps))


def _clamped(budget: jax.Array, least: int, most: int) -> jax.Array:
    """Return a traced budget as a whole number from `least` to `most`."""
    if jnp.issubdtype(budget.dtype, jnp.integer):
        return jnp.clip(budget, least, min(most, jnp.iinfo(budget.dtype).max))
    # It stays floating point: bytes of a large model do not fit 32 bits.
    return jnp.clip(jnp.floor(budget), least, most)
