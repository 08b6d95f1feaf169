"""What to keep: policies, as small frozen values.

A policy looks at the pool of the singular values of all modules (`scope="global"`,
PARA) or at each module by itself (`scope="local"`, the paper's ablation). It either
spends a budget (`Gamma`, `Rank`, `Params`, `Bytes`), which it does not exceed, or cuts
at a threshold (`Epsilon`, `Threshold`). `para_jax._pruning.select` applies it.

A policy is a pytree whose one leaf is its value; all else is static. So it goes through
`jit`, `vmap` and `scan` like an array, and one program serves every budget.
"""

import abc
import dataclasses
import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._pruning.pool import Pool

Scope = Literal["global", "local"]


def _flatten(policy: "Policy") -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Returns the value with its key, and the static rest."""
    names = [x.name for x in dataclasses.fields(policy)]
    value, *static = (getattr(policy, name) for name in names)
    return ((jax.tree_util.GetAttrKey(names[0]), value),), tuple(static)


def _unflatten(
    kind: type["Policy"], static: tuple[Any, ...], leaves: Sequence[Any]
) -> "Policy":
    """Returns a policy, unchecked: JAX makes them of tracers, shapes and None."""
    policy = object.__new__(kind)
    names = [x.name for x in dataclasses.fields(kind)]
    vars(policy).update(zip(names, (*leaves, *static), strict=True))
    return policy


@dataclasses.dataclass(frozen=True)
class Policy:
    """What all policies share.

    A value that is a plain number is checked at once. One that is traced or on a device
    cannot be: inside `jit`, what is impossible is brought to the nearest that is
    possible (see `para_jax.masks`). There, fractions are of JAX's precision, float32
    by default: a budget within `2^-22` below an integer counts as that integer.

    Attributes:
      value: The budget or the threshold: a number, a traced scalar, or an array of
        budgets to `vmap` over.
      scope: `global` compares all modules; `local` treats each by itself.
      min_rank: Every module keeps at least so many components, if it has them.
      max_rank: No module keeps more.
      multiple_of: Ranks are multiples of this, or the module's whole rank: a budget
        buys blocks of components, a threshold rounds up.

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

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        unflatten = functools.partial(_unflatten, cls)
        jax.tree_util.register_pytree_with_keys(cls, _flatten, unflatten)

    def __post_init__(self) -> None:
        if type(self) is Policy:
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
        q = self.multiple_of
        least = max(-(-self.min_rank // q), 1) * q
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
        """Raises ValueError if the value makes no sense for any parent."""

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
    def budget(self, pool: Pool) -> int | jax.Array:
        """Returns what may be spent on this parent: a whole number.

        It is an array where the value is traced: no more than the parent takes.

        Raises:
          ValueError: if it is more than the parent, or buys not one component.
        """

    def _within(
        self, budget: float | jax.Array, whole: int, least: int, unit: str
    ) -> int | jax.Array:
        """Returns the budget as a whole number, if it is possible for this parent."""
        if isinstance(budget, jax.core.Tracer):
            return _clamped(budget, 0, whole)
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

    def _check(self, value: float) -> None:
        if not 0 < value <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {value:g}.")

    def budget(self, pool: Pool) -> int | jax.Array:
        """Returns the share of all ranks, rounded down, but one at least."""
        budget = _times(self.value, pool.total_rank)
        if isinstance(budget, jax.core.Tracer):
            return _clamped(budget, 1, pool.total_rank)
        return max(1, math.floor(budget + 1e-9))


class Rank(Budget):
    """Keep so many ranks a module on average: `Gamma(rank / r)`, said otherwise.

    `Rank(0)` keeps nothing.
    """

    kind = "rank"

    def _check(self, value: float) -> None:
        if value < 0:
            raise ValueError(f"A rank must not be negative, got {value:g}.")

    def budget(self, pool: Pool) -> int | jax.Array:
        """Returns the number of ranks in all."""
        budget = _times(self.value, pool.modules)
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

    def budget(self, pool: Pool) -> int | jax.Array:
        """Returns the number of parameters; of bytes for `Bytes`."""
        costs = self.costs(pool)
        whole = int((costs * pool.rank)[pool.start].sum())
        return self._within(_times(self.value, 1), whole, int(costs.min()), self.kind)


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

    def _check(self, value: float) -> None:
        if not 0 < value <= 1:
            raise ValueError(f"epsilon must be in (0, 1], got {value:g}.")


class Threshold(Policy):
    """Keep the singular values from `tau` up: the paper's Eq. 2."""

    kind = "threshold"

    def _check(self, value: float) -> None:
        if value < 0:
            raise ValueError(f"A threshold must not be negative, got {value:g}.")


def _times(value: Any, count: int) -> float | jax.Array:
    """Returns `value * count`; if traced, as large as rounding may have made it less.

    So a product that is an integer does not end up below it, as in float64.
    """
    if not isinstance(value, jax.core.Tracer):
        return float(value) * count
    if count == 1 or jnp.issubdtype(value.dtype, jnp.integer):
        return value * count
    wide = value.astype(np.promote_types(value.dtype, np.float32))
    return wide * count * (1 + 2 * float(jnp.finfo(wide.dtype).eps))


def _clamped(budget: jax.Array, least: int, most: int) -> jax.Array:
    """Returns a traced budget as a whole number from `least` to `most`."""
    if jnp.issubdtype(budget.dtype, jnp.integer):
        return jnp.clip(budget, least, min(most, jnp.iinfo(budget.dtype).max))
    # It stays floating point: bytes of a large model do not fit 32 bits.
    return jnp.clip(jnp.floor(budget), least, most)
