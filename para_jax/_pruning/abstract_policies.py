"""The interface of policies: their costs, their limits and their choice.

A policy either spends a budget (`Budget`), which it does not exceed, or cuts at a
threshold (`Cutoff`). `select.py`, `near_ties.py` and `report.py` call the methods of
`Policy` and never ask for its kind; `policies.py` has the policies themselves, and
admits subclasses of the two only.

A policy is a pytree with its value as the one leaf; all else is static. So it passes
through `jit`, `vmap` and `scan` like an array, and one program serves every budget.

`keep` and `limits` are traceable under `jit`, and the same text on NumPy arrays. The
other methods run on the host, also while a program is traced.
"""

import abc
import dataclasses
import math
import numbers
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters.choices import ScoreName
from para_jax._pruning import comparisons, pytrees, scores
from para_jax._pruning.comparisons import Choice, Found
from para_jax._pruning.pool import Pool
from para_jax._pruning.scores import Score
from para_jax._pruning.spending import Candidates, Prices, spend

Scope = Literal["global", "local"]


class Limits(NamedTuple):
    """The least and the largest rank of each component's module, `[N]` each."""

    low: Any
    high: Any


@dataclasses.dataclass(frozen=True)
class Policy:
    """Choose the components to keep: the base of all policies.

    A plain number is checked at once. A value that is traced or on a device cannot be:
    inside `jit`, an impossible budget is clamped to the nearest possible one (see
    `para_jax.masks`). There, fractions have JAX's precision, float32 by default: a
    budget within `2^-22` below an integer counts as that integer.

    `Params` here is a budget of parameters. It has nothing to do with the nested
    dicts of `para_jax.to_params`.

    Attributes:
      value: The budget or the threshold: a number, a traced scalar, or an array of
        budgets to `vmap` over.
      scope: `global` compares all modules; `local` treats each by itself.
      min_rank: The least rank of a module, if it has as many components.
      max_rank: The largest rank of a module.
      multiple_of: Ranks are multiples of this, or the module's whole rank: a budget
        buys blocks of components, a threshold rounds up.
      score: The order of components of different modules: `"sigma"`, the paper's;
        `"relative"`, the share of their own module's update; or a `Score`. Energies and
        thresholds are then those of scores.

    Example:
      >>> from para_jax import Bytes, Epsilon, Gamma, Params, Rank, Threshold
      >>> budgets = Gamma(0.5), Rank(2, max_rank=2), Params(40), Bytes(160)
      >>> cuts = Epsilon(0.99), Threshold(2), Threshold(2, min_rank=2)
      >>> [x.report.kept_rank for x in para_jax.family(adapters, budgets + cuts)]
      [3, 4, 3, 3, 5, 4, 5]
    """

    value: float | np.number | np.ndarray | jax.Array
    _: dataclasses.KW_ONLY
    scope: Scope = "global"
    min_rank: int = 0
    max_rank: int | None = None
    multiple_of: int = 1
    score: ScoreName | Score = "sigma"

    kind: ClassVar[str]
    scale_free: ClassVar[bool] = True
    """Whether the choice depends on ratios of singular values alone."""

    def __init_subclass__(cls) -> None:
        # Also for a user's subclass: it passes through `jit` without more ado.
        pytrees.register(cls)

    def __post_init__(self) -> None:
        if type(self) is Policy:  # Not by `abc.ABC`, to say what to use instead.
            kinds = "Gamma, Rank, Params, Bytes, Epsilon or Threshold"
            raise TypeError(f"Policy is abstract, and chooses nothing: use {kinds}.")
        if self.scope not in ("global", "local"):
            raise ValueError(f"scope is 'global' or 'local', got {self.scope!r}.")
        for name in ("min_rank", "max_rank", "multiple_of"):
            least = 1 if name == "multiple_of" else 0
            got = getattr(self, name)
            if got is not None and (got != int(got) or got < least):
                raise ValueError(
                    f"{name} must be an integer from {least} up, got {got!r}."
                )
        scores.named(self.score)  # Raises if there is none.
        q = self.multiple_of
        least = max(round_up(self.min_rank, q), q)
        if self.max_rank is not None and self.max_rank < least:
            raise ValueError(
                "max_rank must be at least min_rank, in multiples of multiple_of: "
                f"expected {least} or more, got {self.max_rank}."
            )
        if isinstance(self.value, jax.Array | np.ndarray):
            return  # To read it back from a device would wait for all that runs there.
        if not isinstance(self.value, numbers.Real) or math.isnan(self.value):
            raise ValueError(f"{self.kind} must be a number, got {self.value!r}.")
        self._check(float(self.value))

    def _check(self, value: float) -> None:
        """Raise ValueError if the value is impossible for every parent."""

    @property
    def is_traced(self) -> bool:
        """Whether the value is not known before the program runs."""
        return isinstance(self.value, jax.core.Tracer)

    @property
    def name(self) -> str:
        """A short name for tables and folders, such as `gamma 0.25`."""
        parts = [self.kind, f"{self.value:.10g}"]
        parts += ["local"] if self.scope == "local" else []
        parts += [f"min {self.min_rank}"] if self.min_rank else []
        parts += [] if self.max_rank is None else [f"max {self.max_rank}"]
        parts += [f"multiple {self.multiple_of}"] if self.multiple_of > 1 else []
        score = scores.named(self.score)
        parts += [str(score)] if score.power else []
        return " ".join(parts)

    def limits(self, pool: Pool) -> Limits:
        """Return the least and largest rank of each component's module.

        In blocks of `multiple_of`, except for modules that are smaller than that.
        """
        q, size = self.multiple_of, pool.sizes[pool.module]
        low, high = round_up(self.min_rank, q), size
        if self.max_rank is not None:
            high = np.where(size <= self.max_rank, size, self.max_rank // q * q)
        return Limits(np.minimum(low, high), high)

    def costs(self, pool: Pool) -> np.ndarray:
        """Return the cost of each component of the pool, `[N]`."""
        return np.ones_like(pool.index)

    def divisor(self, pool: Pool) -> np.ndarray:
        """Return what the square of a score is divided by to give its worth, `[N]`.

        The cost of singular values: their square a parameter is the least error for a
        budget. A score that is relative to a norm has the size of its module in it
        already, and was better without the cost wherever both were measured.
        """
        paper = not scores.named(self.score).power
        return self.costs(pool) if paper else np.ones_like(pool.index)

    def rank_budget(self, pool: Pool) -> int | None:
        """Return the number of ranks to spend, or None if the policy counts otherwise.

        A report tells how many of them zeros and limits left unspent.
        """

    @abc.abstractmethod
    def keep(self, found: Candidates, xp: Any) -> Any:
        """Return the components to keep, `[N]`.

        Args:
          found: The components to choose from.
          xp: `numpy`, or `jax.numpy` while tracing.
        """

    @abc.abstractmethod
    def near_ties(self, choice: Choice, error: float) -> Iterator[Found]:
        """Yield the comparisons behind a choice within reach of rounding.

        Args:
          choice: The components, and which were kept; near 1 if `scale_free`.
          error: The error of a singular value, relative to its module's largest.
        """


@dataclasses.dataclass(frozen=True)
class Budget(Policy, abc.ABC):
    """Spend at most a budget, best components first.

    `Gamma` and `Rank` count ranks; `Params` and `Bytes` count their cost.

    Example:
      >>> isinstance(para_jax.Rank(2), para_jax.Budget)
      True
      >>> found = para_jax.pool(para_jax.decompose(adapters))
      >>> para_jax.Rank(2).budget(found), para_jax.Params(40).costs(found).tolist()
      (4, [12, 12, 12, 12, 12, 12])

    Attributes:
      ties: `exact` never exceeds the budget: of equally worthy components, the
        earlier layer's first. `threshold` keeps all that equal the last one, the
        literal Eq. 2, which may exceed it.
      remainder: How a local budget spends its remainder after even shares: `floor`
        leaves it, `greedy` gives one rank each to the modules with the most valuable
        next component.
    """

    _: dataclasses.KW_ONLY
    ties: Literal["exact", "threshold"] = "exact"
    remainder: Literal["floor", "greedy"] = "floor"

    counts_ranks: ClassVar[bool] = True
    """Whether the budget is a number of ranks."""

    @abc.abstractmethod
    def budget(self, pool: Pool) -> int | jax.Array:
        """Return the budget for this parent, a whole number.

        It is an array if the value is traced, no more than the parent costs.

        Raises:
          ValueError: if it is more than the parent, or buys not one component.
        """

    def warn(self, pool: Pool) -> None:
        """Warn if this parent makes the budget another than its value says."""

    def limits(self, pool: Pool) -> Limits:
        """Return the limits, moved to each module's even share by a local budget."""
        limits = super().limits(pool)
        if self.scope == "global":
            return limits
        xp = jnp if self.is_traced else np
        q, high = self.multiple_of, limits.high
        whole_rank = int(self.costs(pool)[pool.start].sum())  # One more in each module.
        share = xp.asarray(self.budget(pool) // whole_rank).astype(int)
        low = xp.maximum(round_up(self.min_rank, q), share // q * q)
        # "greedy" leaves one block in each module to compete for the remainder.
        high = xp.minimum(high, low + q if self.remainder == "greedy" else low)
        return Limits(xp.minimum(low, high), high)

    def prices(self, pool: Pool) -> Prices:
        """Return the costs and the budget, in the largest unit of all costs.

        Raises:
          ValueError: if the budget is known, and cannot pay for `min_rank`.
        """
        cost, budget = self.costs(pool), self.budget(pool)
        unit = int(np.gcd.reduce(cost))  # Bytes of a large model do not fit 32 bits.
        divisor = self.divisor(pool)
        divisor = divisor // int(np.gcd.reduce(divisor))
        forced = pool.index < self.limits(pool).low
        if isinstance(budget, jax.Array):
            # Nothing can be refused while tracing: so at least `min_rank` is bought.
            needed = jnp.where(forced, cost // unit, 0).sum()
            budget = jnp.maximum((budget // unit).astype(needed.dtype), needed)
            return Prices(cost // unit, divisor, budget)
        self.warn(pool)
        if (needed := int(cost[forced].sum())) > budget:
            raise ValueError(
                f"{self.name}: min_rank {self.min_rank} for {pool.modules} modules "
                f"takes {needed}, the budget is {budget}. Lower one or raise the other."
            )
        return Prices(cost // unit, divisor, budget // unit)

    def rank_budget(self, pool: Pool) -> int | None:
        """Return the budget, if it is a number of ranks."""
        return int(self.budget(pool)) if self.counts_ranks else None

    def keep(self, found: Candidates, xp: Any) -> Any:
        """Return the most valuable blocks of components within the budget, `[N]`."""
        prices, ties = self.prices(found.pool), self.ties == "threshold"
        return spend(found, prices, self.multiple_of, xp, ties=ties)

    def near_ties(self, choice: Choice, error: float) -> Iterator[Found]:
        """Yield the blocks of a kept and a dropped one in doubtful order."""
        return comparisons.of_two_blocks(choice, choice.worth_of_block(), error)


@dataclasses.dataclass(frozen=True)
class Cutoff(Policy, abc.ABC):
    """Keep all components from a threshold up, however many."""

    @abc.abstractmethod
    def reached(self, found: Candidates, xp: Any) -> Any:
        """Return the components from the threshold up, `[N]`; see `keep`."""

    def keep(self, found: Candidates, xp: Any) -> Any:
        """Return all blocks with a component from the threshold up, `[N]`."""
        some = found.forced | (found.allowed & self.reached(found, xp))
        block = found.pool.blocks(self.multiple_of)
        return found.allowed & (some[block.place] & block.exists).any(-1)


def round_up(rank: int, q: int) -> int:
    """Return the least multiple of `q` from `rank` up."""
    return -(-rank // q) * q
