"""Near ties: the closeness of a choice, compared with rounding.

Runs on the host.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from para_jax._pruning.abstract_policies import Policy
from para_jax._pruning.comparisons import Choice, Found
from para_jax._pruning.pool import Pool
from para_jax._pruning.scores import named, scored
from para_jax.linalg import tolerances

# The error of a singular value, relative to its module's largest: above the errors seen
# of any method at kept values, and below most differences between values.
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
    """A choice within reach of rounding.

    Attributes:
      what: The two sides, in words.
      precision: The rounding it takes: that of `float64`, in which files are
        compressed, or of `float32`, the default of traced programs.
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


def near_tie(
    s: np.ndarray, kept: np.ndarray, policy: Policy, pool: Pool, *, narrow: bool
) -> Tie | None:
    """Find the closest near tie of a choice, within reach of rounding, if any.

    A singular value is known to 1e-12 of its module's largest in float64, to 1e-6 in
    float32. Two that differ by less than both errors may be in the other order on
    another device, in another precision, or after the factors were rounded again, as
    they are when a scale is folded in. The comparisons are

    - for budgets, the last component that was kept with the first that was not, by
      the order of the policy: its score, or `sigma / sqrt(m + n)` where a rank has a
      price;
    - for `Epsilon` these two, and the energy that is dropped with what may be;
    - for `Threshold`, every component with the threshold.

    Args:
      s: The parent's singular values, float64 `[N]`.
      kept: What was kept, booleans `[N]`.
      policy: What chose it.
      pool: The pool of the values.
      narrow: Whether the values were computed in float32.
    """
    whole = _choice(s, kept, policy, pool)
    choices = [whole]
    if policy.scope == "local":
        # Components of a local policy compete within their module.
        choices = [whole.of(whole.module == i) for i in range(pool.modules)]
    if policy.scale_free:
        choices = [x.near_one() for x in choices]
    # What no rounding of float32 turns, none of float64 does: mostly one look is all.
    if not _found(choices, policy, "float32"):
        return None
    # The smaller error first: a tie in float64 concerns all users, one in float32 those
    # of traced programs alone.
    for precision in ("float32",) if narrow else ("float64", "float32"):
        if found := _found(choices, policy, precision):
            closest = min(found, key=lambda x: x.gap)
            modules = np.unique(np.concatenate([x.modules for x in found]))
            return Tie(
                what=closest.what,
                precision=precision,
                gap=closest.gap,
                modules=tuple(pool.kernels[i].name for i in modules),
            )
    return None


def _found(choices: Sequence[Choice], policy: Policy, precision: str) -> list[Found]:
    error = _ERRORS[precision]
    return [tie for x in choices for tie in policy.near_ties(x, error)]


def _choice(s: np.ndarray, kept: np.ndarray, policy: Policy, pool: Pool) -> Choice:
    top = s[pool.first]
    resolved = s > tolerances.floor(top, pool.rank)
    # `max_rank` itself, not in blocks: a module's last block may be shorter.
    most = math.inf if policy.max_rank is None else policy.max_rank
    allowed = resolved & (pool.index < most)
    score = scored(s, policy.score, pool, np, scale_free=policy.scale_free)
    return Choice(
        s=score,
        # A norm has about the same error as the value that it divides.
        top=score[pool.first] * (1 + named(policy.score).power),
        price=np.sqrt(policy.divisor(pool)),
        module=pool.module,
        first=pool.index % policy.multiple_of == 0,
        resolved=resolved,
        allowed=allowed,
        free=allowed & (pool.index >= policy.min_rank),
        kept=kept,
    )
