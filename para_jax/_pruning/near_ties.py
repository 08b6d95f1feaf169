"""How close a choice was: the near ties that rounding may turn. Host.

Two singular values differ for sure if they differ by more than the errors of both,
which are relative to the largest value of each one's module.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from para_jax._adapters.stacks import member
from para_jax._pruning.decompose import Spectra
from para_jax._pruning.policies import Budget, Epsilon, Policy, Threshold
from para_jax._pruning.pool import Pool, pool
from para_jax.linalg import energy
from para_jax.linalg.tolerances import RESOLUTION

# The error of a singular value, relative to its module's largest: more than any method
# was seen to make where values are kept, and less than most differ by.
_ERRORS = {"float64": 1e-12, "float32": 1e-6}

_TURNED_BY = {
    "float64": "another platform may choose otherwise",
    "float32": (
        "a program in float32, or one that reads a copy that was rounded to float32 "
        "again, may choose otherwise"
    ),
}
_NAMED = 3  # Of many modules.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tie:
    """A choice that rounding may turn.

    Attributes:
      what: What equals what.
      precision: Whose rounding it takes: `float64`, in which files are compressed, or
        `float32`, in which traced programs compute by default.
      gap: The difference of the two, relative to what was kept.
      modules: The kernels whose rank may be another.
    """

    what: str
    precision: str
    gap: float
    modules: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(f"'{x}'" for x in self.modules[:_NAMED])
        more = len(self.modules) - _NAMED
        names += f" and {more} more" if more > 0 else ""
        return (
            f"{self.what} within rounding of {self.precision} (by {self.gap:.0e}; "
            f"{names}): {_TURNED_BY[self.precision]}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Choice:
    """The components that a policy compares with each other.

    Attributes:
      s: Their singular values, `[N]`.
      top: The largest singular value of each one's module, `[N]`.
      price: The root of what a component costs: `s / price` orders them, `[N]`.
      module: The module of each, `[N]`, ascending.
      index: Its position among its module's, `[N]`.
      resolved: Which do not count as zero, `[N]`.
      kept: Which the policy kept, `[N]`.
    """

    s: np.ndarray
    top: np.ndarray
    price: np.ndarray
    module: np.ndarray
    index: np.ndarray
    resolved: np.ndarray
    kept: np.ndarray

    def of(self, which: np.ndarray) -> "_Choice":
        """Returns some of them."""
        fields = dataclasses.fields(self)
        return _Choice(**{x.name: getattr(self, x.name)[which] for x in fields})


_Found = tuple[str, float, np.ndarray]  # What equals what, by how much, which modules.


def near_tie(
    spectra: Spectra, masks: Mapping[str, np.ndarray], policy: Policy
) -> Tie | None:
    """Returns the tie that the choice came closest to, if rounding may turn it.

    A singular value is known to 1e-12 of its module's largest in float64, to 1e-6 in
    float32. Two that differ by less than both errors may be in the other order on
    another device, in another precision, or after the factors were rounded again, as
    they are when a scale is folded in. What is compared is

    - for budgets, the last component that was kept with the first that was not, by
      what orders them: `sigma`, or `sigma / sqrt(m + n)` where a rank has a price;
    - for `Epsilon` these two, and the energy that is dropped with what may be;
    - for `Threshold`, every component with the threshold.

    Args:
      spectra: The parent's spectra, concrete.
      masks: What was kept, booleans `[*stack, k]` by path.
      policy: What chose it.
    """
    layout = pool(spectra)
    choice = _choice(spectra, masks, policy, layout)
    choices = [choice]
    if policy.scope == "local":
        choices = [choice.of(choice.module == i) for i in range(layout.modules)]
    wide = all(x.s.dtype == np.float64 for x in spectra.values())
    for precision in ("float64", "float32") if wide else ("float32",):
        error = _ERRORS[precision]
        found = [tie for one in choices for tie in _ties(one, policy, error)]
        if found:
            what, gap, _ = min(found, key=lambda x: x[1])
            modules = np.unique(np.concatenate([x[2] for x in found]))
            names = _names(layout)
            return Tie(
                what=what,
                precision=precision,
                gap=gap,
                modules=tuple(names[i] for i in modules),
            )
    return None


def _names(layout: Pool) -> list[str]:
    """Returns the path of each module."""
    return [
        member(path, index)
        for path, shape in layout.shapes.items()
        for index in np.ndindex(shape[:-1])
    ]


def _choice(
    spectra: Spectra, masks: Mapping[str, np.ndarray], policy: Policy, layout: Pool
) -> _Choice:
    s = {path: np.asarray(x.s, np.float64) for path, x in spectra.items()}
    pooled = layout.gather(s, np)
    top = pooled[layout.start[layout.module]]
    costs = policy.costs(layout) if isinstance(policy, Budget) else np.ones(len(top))
    return _Choice(
        s=pooled,
        top=top,
        price=np.sqrt(costs),
        module=layout.module,
        index=layout.index,
        resolved=pooled > layout.rank * RESOLUTION * top,
        kept=layout.gather(masks, np),
    )


def _ties(x: _Choice, policy: Policy, error: float) -> Iterator[_Found]:
    if isinstance(policy, Threshold):
        yield from _with_threshold(x, float(policy.value), error)
        return
    s, top = energy.near_one(np.stack([x.s, x.top]), np)
    x = dataclasses.replace(x, s=s, top=top)
    yield from _of_two_blocks(x, policy, error)
    if isinstance(policy, Epsilon) and policy.value < 1:
        yield from _of_energy(x, policy, error)


def _with_threshold(x: _Choice, tau: float, error: float) -> Iterator[_Found]:
    gap = np.abs(x.s - tau)
    near = x.resolved & (gap <= error * x.top) & (tau > 0)
    if near.any():
        yield "a component equals the threshold", gap[near].min() / tau, x.module[near]


def _of_two_blocks(x: _Choice, policy: Policy, error: float) -> Iterator[_Found]:
    """Yields that a kept block is worth as much as a dropped one, if it is."""
    first = x.index % policy.multiple_of == 0
    worth = x.s / x.price
    if isinstance(policy, Budget):
        block = np.cumsum(first) - 1
        squares = np.bincount(block, np.where(x.resolved, worth, 0) ** 2)
        worth = np.sqrt(squares / np.bincount(block))[block]
    margin = error * x.top / x.price
    # What is zero, or beyond a limit, was not for the policy to choose.
    most = math.inf if policy.max_rank is None else policy.max_rank
    free = first & x.resolved & (x.index >= policy.min_rank) & (x.index < most)
    kept, dropped = free & x.kept, free & ~x.kept
    lowest = (worth - margin)[kept].min(initial=math.inf)
    highest = (worth + margin)[dropped].max(initial=-math.inf)
    near = (kept & (worth - margin <= highest)) | (dropped & (worth + margin >= lowest))
    if near.any():
        last, following = worth[kept].min(), worth[dropped].max()
        what = "the largest dropped component equals the smallest kept one"
        yield what, abs(last - following) / last, x.module[near]


def _of_energy(x: _Choice, policy: Epsilon, error: float) -> Iterator[_Found]:
    """Yields that one component more may just or just not be dropped, if it is so."""
    most = math.inf if policy.max_rank is None else policy.max_rank
    candidate = x.resolved & (x.index < most)
    squares, doubts = x.s**2, 2 * error * x.s * x.top
    order = np.flatnonzero(candidate)[np.argsort(x.s[candidate])]
    share = 1 - float(policy.value)
    dropped, doubt = (
        y[~candidate].sum() + np.cumsum(y[order]) for y in (squares, doubts)
    )
    allowed = share * squares.sum()
    near = np.abs(dropped - allowed) <= doubt + share * doubts.sum()
    if near.any():
        gap = np.abs(dropped - allowed)[near].min() / squares.sum()
        yield "the kept energy equals what is asked for", gap, x.module[order[near]]
