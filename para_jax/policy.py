"""What to keep: policies, as small frozen values.

A policy looks at the pool of the singular values of all modules (`scope="global"`,
PARA) or at each module by itself (`scope="local"`, the paper's ablation). It either
spends a budget (`Gamma`, `Rank`, `Params`, `Bytes`), which it does not exceed, or cuts
at a threshold (`Epsilon`, `Threshold`). `para_jax.select` applies it.
"""

import abc
import dataclasses
import math
import numbers
from typing import ClassVar, Literal

import numpy as np

from para_jax.pool import Pool

Scope = Literal["global", "local"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """What all policies share.

    Attributes:
      value: The budget or the threshold.
      scope: `global` compares all modules; `local` treats each by itself.
      min_rank: Every module keeps at least so many components, if it has them.
      max_rank: No module keeps more.
      multiple_of: Ranks are multiples of this, or the module's whole rank: a budget
        buys blocks of components, a threshold rounds up.
    """

    value: float | np.number
    _: dataclasses.KW_ONLY
    scope: Scope = "global"
    min_rank: int = 0
    max_rank: int | None = None
    multiple_of: int = 1

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if self.scope not in ("global", "local"):
            raise ValueError(f"scope is 'global' or 'local', got {self.scope!r}.")
        for name in ("min_rank", "max_rank", "multiple_of"):
            least = 1 if name == "multiple_of" else 0
            got = getattr(self, name)
            if got is not None and (got != int(got) or got < least):
                raise ValueError(
                    f"{name} must be an integer from {least} up, got {got!r}."
                )
        q = self.multiple_of
        least = max(-(-self.min_rank // q), 1) * q
        if self.max_rank is not None and self.max_rank < least:
            raise ValueError(
                "max_rank must be at least min_rank, in multiples of multiple_of: "
                f"expected {least} or more, got {self.max_rank}."
            )
        if not isinstance(self.value, numbers.Real) or math.isnan(self.value):
            raise ValueError(f"{self.kind} must be a number, got {self.value!r}.")
        self._check()

    def _check(self) -> None:
        """Raises ValueError if the value makes no sense for any parent."""

    @property
    def name(self) -> str:
        """A short name for tables and folders, such as `gamma 0.25`."""
        parts = [self.kind, f"{self.value:.10g}"]
        parts += ["local"] if self.scope == "local" else []
        parts += [f"min {self.min_rank}"] if self.min_rank else []
        parts += [] if self.max_rank is None else [f"max {self.max_rank}"]
        parts += [f"multiple {self.multiple_of}"] if self.multiple_of > 1 else []
        return " ".join(parts)


@dataclasses.dataclass(frozen=True)
class Budget(Policy, abc.ABC):
    """A policy that spends at most a budget, best components first.

    `Gamma` and `Rank` count ranks; `Params` and `Bytes` what a rank costs.

    Attributes:
      ties: `exact` never exceeds the budget: of equally worthy components, the
        earlier layer's first. `threshold` keeps all that equal the last one, the
        literal Eq. 2, which may exceed it.
      remainder: What a local budget does with what does not divide evenly: `floor`
        leaves it, `greedy` gives one rank each to the modules whose next component
        is worth most.
    """

    _: dataclasses.KW_ONLY
    ties: Literal["exact", "threshold"] = "exact"
    remainder: Literal["floor", "greedy"] = "floor"

    counts_ranks: ClassVar[bool] = True

    def costs(self, pool: Pool) -> np.ndarray:
        """Returns what each component of the pool costs, `[N]`."""
        return np.ones_like(pool.index)

    @abc.abstractmethod
    def budget(self, pool: Pool) -> int:
        """Returns what may be spent on this parent.

        Raises:
          ValueError: if it is more than the parent, or buys not one component.
        """

    def _within(self, budget: float, whole: int, least: int, unit: str) -> int:
        """Returns the budget as an integer, if it is possible for this parent."""
        # The small term makes 0.3 * 10 three, whatever floating point says.
        if budget + 1e-9 >= whole + 1:
            raise ValueError(
                f"{self.name}: a budget of {budget:.10g} {unit} is above the parent's "
                f"{whole}. Ask for less."
            )
        result = math.floor(budget + 1e-9)
        if budget > 0 and result < least:
            raise ValueError(
                f"{self.name}: a budget of {budget:.6g} {unit} is below one rank, "
                f"which takes at least {least}."
            )
        return result


class Gamma(Budget):
    """Keep the share `gamma` of all ranks: the paper's Eq. 12.

    `floor(gamma * total_rank)` components, the largest of the pool; at least one.
    """

    kind = "gamma"

    def _check(self) -> None:
        if not 0 < self.value <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {self.value:g}.")

    def budget(self, pool: Pool) -> int:
        """Returns the share of all ranks, rounded down, but one at least."""
        return max(1, math.floor(float(self.value) * pool.total_rank + 1e-9))


class Rank(Budget):
    """Keep so many ranks a module on average: `Gamma(rank / r)`, said otherwise.

    `Rank(0)` keeps nothing.
    """

    kind = "rank"

    def _check(self) -> None:
        if self.value < 0:
            raise ValueError(f"A rank must not be negative, got {self.value:g}.")

    def budget(self, pool: Pool) -> int:
        """Returns the number of ranks in all."""
        budget = float(self.value) * pool.modules
        return self._within(budget, pool.total_rank, 1, "ranks")


class Params(Budget):
    """Keep at most so many parameters. Ours, not the paper's.

    A component of an `[m, n]` kernel costs `m + n` and is worth `sigma^2 / (m + n)`.
    """

    kind = "params"
    counts_ranks = False

    def costs(self, pool: Pool) -> np.ndarray:
        """Returns the parameters of each component, `m + n`, `[N]`."""
        return pool.cost

    def budget(self, pool: Pool) -> int:
        """Returns the number of parameters; of bytes for `Bytes`."""
        costs = self.costs(pool)
        whole = int((costs * pool.rank)[pool.start].sum())
        return self._within(float(self.value), whole, int(costs.min()), self.kind)


class Bytes(Params):
    """Keep at most so many bytes of factors, in the dtype they are stored in.

    Headers and tensors that are not LoRA factors do not count. Ours.
    """

    kind = "bytes"

    def costs(self, pool: Pool) -> np.ndarray:
        """Returns the bytes of each component, `[N]`."""
        return pool.cost * pool.itemsize


class Epsilon(Policy):
    """Keep the share `epsilon` of the energy: the paper's Eq. 14.

    The largest threshold whose kept sum of squares is at least `epsilon` of the
    total. Equal values stay or go together. `Epsilon(1)` drops only what counts as
    zero.
    """

    kind = "epsilon"

    def _check(self) -> None:
        if not 0 < self.value <= 1:
            raise ValueError(f"epsilon must be in (0, 1], got {self.value:g}.")


class Threshold(Policy):
    """Keep the singular values from `tau` up: the paper's Eq. 2."""

    kind = "threshold"

    def _check(self) -> None:
        if self.value < 0:
            raise ValueError(f"A threshold must not be negative, got {self.value:g}.")
