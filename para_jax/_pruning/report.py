"""The report of a compression: ranks, parameters, energy, error; as data and as text.

Runs on the host.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from para_jax._pruning.decompose import Spectra
from para_jax._pruning.near_ties import Tie, near_tie
from para_jax._pruning.policies import Policy
from para_jax._pruning.pool import Pool, pool as pool_of
from para_jax._pruning.scores import named, weights
from para_jax._pruning.select import pooled
from para_jax.linalg import energy


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModuleReport:
    """One kernel before and after.

    Attributes:
      path: Its path; a stack's index is the last part.
      inputs: `m`.
      outputs: `n`.
      rank: The parent's rank.
      itemsize: The bytes of one parameter of the child.
      sigma: The singular values of the parent's update, float64 `[k]`, descending.
      mask: Which of them the child keeps, `[k]`.
      nominal: The rank that budgets count, where it is not `rank`.
      weight: What its singular values are multiplied with to be compared with those of
        other modules; 1 for the paper's score.
    """

    path: str
    inputs: int
    outputs: int
    rank: int
    itemsize: int
    sigma: np.ndarray
    mask: np.ndarray
    nominal: int | None = None
    weight: float = 1.0

    @property
    def kept(self) -> int:
        """The child's rank."""
        return int(np.count_nonzero(self.mask))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """The account of a compression.

    `print(report)` gives a table of 80 columns; `report.as_dict()` plain JSON values.

    Attributes:
      policy: The policy's name, such as `gamma 0.25`.
      modules: One entry a kernel, in the model's order.
      score: What components of different modules were compared by, such as `sigma`.
      tie: The closest comparison that rounding may turn, if any.
      notes: Remarks for the reader, in words: a budget not filled, a tie.

    Example:
      >>> found = para_jax.compress(adapters, para_jax.Epsilon(0.95)).report
      >>> found.policy, found.kept_rank, found.average_rank, round(found.energy, 3)
      ('epsilon 0.95', 3, 1.5, 0.957)
      >>> {x.path: x.kept for x in found.modules}
      {'down': 1, 'up': 2}
    """

    policy: str
    modules: tuple[ModuleReport, ...]
    score: str = "sigma"
    tie: Tie | None = None
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def _pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """All singular values, and which of them are kept."""
        sigma = np.concatenate([x.sigma for x in self.modules])
        return sigma, np.concatenate([x.mask for x in self.modules])

    @functools.cached_property
    def _kept(self) -> np.ndarray:
        """The child's rank of each module, `[M]`."""
        ends = np.cumsum([x.mask.size for x in self.modules])
        return np.diff(np.cumsum(self._pooled[1])[ends - 1], prepend=0)

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        """The parameters of one rank of each module, `[M]`."""
        return np.array([x.inputs + x.outputs for x in self.modules])

    @property
    def threshold(self) -> float:
        """The smallest score that was kept, or infinity for none.

        With the paper's score, it is a singular value.
        """
        sizes = [x.sigma.size for x in self.modules]
        score = self._pooled[0] * np.repeat([x.weight for x in self.modules], sizes)
        return float(score[self._pooled[1]].min(initial=math.inf))

    @property
    def total_rank(self) -> int:
        """The parent's ranks, as budgets count them: the paper's B_init."""
        return sum(x.nominal or x.rank for x in self.modules)

    @property
    def kept_rank(self) -> int:
        return int(self._kept.sum())

    @property
    def average_rank(self) -> float:
        return self.kept_rank / len(self.modules)

    @property
    def max_rank(self) -> int:
        return int(self._kept.max())

    @property
    def parameters(self) -> int:
        return int(self._kept @ self._sizes)

    @property
    def parent_parameters(self) -> int:
        return int(np.array([x.rank for x in self.modules]) @ self._sizes)

    @property
    def bytes(self) -> int:
        """The bytes of the child's factors."""
        itemsize = np.array([x.itemsize for x in self.modules])
        return int(self._kept @ (self._sizes * itemsize))

    @property
    def energy(self) -> float:
        """The kept share of the sum of squared singular values, 0 to 1 (Eq. 13)."""
        return 1 - self.error**2  # Not the kept sum: the two always agree.

    @functools.cached_property
    def error(self) -> float:
        """The relative Frobenius error of the child over all modules (Eq. 11)."""
        return math.sqrt(energy.dropped(*self._pooled))

    @property
    def ranks(self) -> dict[str, int]:
        """The child's rank of each kernel, 0 included, by path."""
        paths = [x.path for x in self.modules]
        return dict(zip(paths, self._kept.tolist(), strict=True))

    def summary(self) -> dict[str, Any]:
        """Return the totals as plain JSON values; an infinite threshold is None."""
        names = (
            "total_rank kept_rank average_rank max_rank parameters parent_parameters "
            "bytes energy error"
        )
        return {
            "policy": self.policy,
            "score": self.score,
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            **{name: getattr(self, name) for name in names.split()},
        }

    def as_dict(self) -> dict[str, Any]:
        """Return `summary`, the notes and every module, as plain JSON values."""
        return self.summary() | {
            "notes": list(self.notes),
            "tie": dataclasses.asdict(self.tie) if self.tie else None,
            "modules": [
                {
                    "path": x.path,
                    "inputs": x.inputs,
                    "outputs": x.outputs,
                    "rank": x.rank,
                    "kept": x.kept,
                    "weight": x.weight,
                    "sigma": x.sigma.tolist(),
                }
                for x in self.modules
            ],
        }

    def __str__(self) -> str:
        share = self.parameters / self.parent_parameters
        removed = sum(x.kept == 0 for x in self.modules)
        ranks = f"{self.kept_rank} of {self.total_rank} ranks kept"
        rows = {
            "rank": f"average {self.average_rank:.2f}, largest {self.max_rank}, "
            f"{removed} of {len(self.modules)} modules removed",
            "parameters": f"{self.parameters:,} of {self.parent_parameters:,} "
            f"({share:.1%}), {human_bytes(self.bytes)}",
            "energy": f"{self.energy:.3%}, relative error {self.error:.4f}",
        }
        of = "" if self.score == "sigma" else f" of {self.score} scores"
        lines = [f"{self.policy}: {ranks}, threshold {self.threshold:.4g}{of}"]
        lines += [f"  {name:10}  {row}" for name, row in rows.items()]
        lines += [f"  note        {note}" for note in self.notes]
        return "\n".join(lines)


def report(
    spectra: Spectra,
    masks: Mapping[str, np.ndarray],
    policy: Policy,
    pool: Pool | None = None,
) -> Report:
    """Return the account of a child.

    Args:
      spectra: The parent's spectra, concrete; their dtype is the child's.
      masks: The kept components, booleans `[*stack, k]` by path.
      policy: What asked for it.
      pool: The pool of `spectra`, if it is at hand.
    """
    pool = pool or pool_of(spectra)
    return Accounts(spectra, pool).report(pool.gather(masks, np), policy)


class Accounts:
    """The reports of one parent's children: all that they share is read once.

    Args:
      spectra: The parent's spectra, concrete; their dtype is the child's.
      pool: The pool of `spectra`.

    Attributes:
      pool: The pool.
      s: All singular values in float64, `[N]`.
    """

    def __init__(self, spectra: Spectra, pool: Pool) -> None:
        self.pool, self.s = pool, pooled(spectra, pool)
        self.s.flags.writeable = False  # All reports show parts of it.
        self._narrow = any(x.s.dtype != np.float64 for x in spectra.values())
        each = {
            path: {
                "inputs": x.shape[0],
                "outputs": x.shape[1],
                "rank": x.rank,
                "nominal": x.nominal,
                "itemsize": np.dtype(x.dtype).itemsize,
            }
            for path, x in spectra.items()
        }
        self._places = [
            slice(start, start + size)
            for start, size in zip(
                pool.start.tolist(), pool.sizes.tolist(), strict=True
            )
        ]
        self._modules = [
            {"path": kernel.name, "sigma": self.s[here], **each[kernel.path]}
            for kernel, here in zip(pool.kernels, self._places, strict=True)
        ]

    def report(self, kept: np.ndarray, policy: Policy) -> Report:
        """Return the account of the child that keeps some components.

        Args:
          kept: Booleans, `[N]`.
          policy: What asked for it.
        """
        pool = self.pool
        tie = near_tie(self.s, kept, policy, pool, narrow=self._narrow)
        budget = policy.rank_budget(pool) or 0
        weight = weights(self.s, policy.score, pool).tolist()
        each = zip(self._places, self._modules, weight, strict=True)
        modules = tuple(ModuleReport(mask=kept[x], weight=w, **y) for x, y, w in each)
        return Report(
            policy=policy.name,
            modules=modules,
            score=str(named(policy.score)),
            tie=tie,
            notes=tuple(_notes(budget, int(np.count_nonzero(kept)), tie)),
        )


def _notes(budget: int, spent: int, tie: Tie | None) -> Iterator[str]:
    if (unspent := budget - spent) > 0:
        yield (
            f"{unspent} of the budget's {budget} ranks are not spent: what is left is "
            "zero, or beyond the policy's limits"
        )
    if tie:
        yield str(tie)


def human_bytes(size: float) -> str:
    """Return a size such as `2.4 MB`, in powers of 1000."""
    units = ["B", "kB", "MB", "GB", "TB"]
    power = min(int(math.log(max(size, 1), 1000)), len(units) - 1)
    return f"{size / 1000**power:.{min(power, 1)}f} {units[power]}"
