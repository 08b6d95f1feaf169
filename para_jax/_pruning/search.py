"""The validation-guided search for the smallest child of good quality.

Runs on the host.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from para_jax._adapters.adapter import Adapter, Adapters
from para_jax._adapters.checkpoint import Checkpoint, Child, as_checkpoint
from para_jax._adapters.padding import pad
from para_jax._pruning.abstract_policies import round_up
from para_jax._pruning.pipeline import cut, spectra_of
from para_jax._pruning.policies import Rank
from para_jax._pruning.pool import Pool, pool as pool_of
from para_jax._pruning.repack import Form
from para_jax.linalg.cores import Method

_ROUNDING = 1e-6  # A relative error of what drops at most numerical zeros.

Metric = Callable[[Mapping[str, Adapter]], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One child of a search, tried.

    Attributes:
      kept_rank: Its ranks in all.
      average_rank: Its ranks a module.
      metric: The caller's metric of it.
      tolerated: The least that is good enough.
    """

    kept_rank: int
    average_rank: float
    metric: float
    tolerated: float

    @property
    def accepted(self) -> bool:
        """Whether the metric is within the tolerance of the parent's."""
        return self.metric >= self.tolerated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """The result of a search.

    Attributes:
      child: The smallest accepted child. One that drops nothing equals the parent, so
        it is accepted without a call of the metric, and is not among `points`.
      parent_metric: The metric of the parent.
      points: All tried children, smallest first.
    """

    child: Child
    parent_metric: float
    points: tuple[Point, ...]

    def __str__(self) -> str:
        lines = [f"parent: metric {self.parent_metric:.4f}"]
        lines += [
            f"{x.kept_rank:6d} ranks, average {x.average_rank:6.2f}: "
            f"metric {x.metric:.4f} {'accepted' if x.accepted else 'rejected'}"
            for x in self.points
        ]
        return "\n".join(lines)


def search(
    parent: Checkpoint | Adapters,
    metric: Metric,
    *,
    tolerance: float,
    limits: Rank = Rank(1),  # noqa: B008, a frozen value.
    form: Form = "ragged",
    method: Method = "auto",
    dtype: Any = None,
) -> Search:
    """Search for the smallest child with a metric within `tolerance` of the parent's.

    Children nest, so it bisects over the number of ranks: about `log2(total_rank)`
    calls of `metric`, after one decomposition. Bisection takes the metric to rise with
    the rank; otherwise the answer is a good child but may not be the smallest, and
    `points` shows it. Use data apart from those of any reported number.

    Example:
      >>> def accuracy(adapters):  # In earnest, of a model that runs with them.
      ...     return 0.9 if np.linalg.matrix_rank(adapters["up"].a) > 1 else 0.5
      >>> found = para_jax.search(adapters, accuracy, tolerance=0.01)
      >>> found.child.report.kept_rank
      3

    Args:
      parent: As for `compress`.
      metric: Larger is better, such as validation accuracy. It gets the parent first,
        then children filled up with zeros to the parent's shapes, of scale 1: so a
        jitted model compiles once for all of them (`to_params` hides the scale).
      tolerance: The loss of the parent's metric to accept, 0 or more.
      limits: A policy whose `scope`, `score`, `min_rank`, `max_rank` and `multiple_of`
        all children keep to; its budget does not count.
      form: The form of the child that is returned.
      method: As for `compress`.
      dtype: As for `compress`.

    Raises:
      ValueError: if `tolerance` is negative, the metric gives NaN, not even the largest
        child is good enough, or `compress` would refuse the parent.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}.")
    checkpoint = as_checkpoint(parent)
    spectra = spectra_of(checkpoint, method=method, dtype=dtype)
    pool = pool_of(spectra)
    wanted = _number(metric(checkpoint.adapters), "the parent")
    points: dict[int, Point] = {}

    def policy(budget: int) -> Rank:
        return dataclasses.replace(limits, value=budget / pool.modules)

    def child(budget: int, form: Form) -> Child:
        return cut(checkpoint, spectra, policy(budget), form=form, pool=pool)

    def good(budget: int) -> bool:
        # In the parent's shapes, so a jitted metric compiles once.
        got = metric(pad(child(budget, "padded").adapters, like=checkpoint.adapters))
        points[budget] = Point(
            kept_rank=budget,
            average_rank=budget / pool.modules,
            metric=_number(got, f"{budget} ranks"),
            tolerated=wanted - tolerance,
        )
        return points[budget].accepted

    most = pool.total_rank
    # A child that drops nothing is the parent, but for rounding: it is good by itself.
    lossless = child(most, "ragged").report.error < _ROUNDING
    if not lossless and not good(most):
        raise ValueError(
            f"Not even {most} ranks, the largest child within the limits, are good "
            "enough. Allow a larger tolerance, or a larger max_rank."
        )
    # `most` is good by now: either it was tried, or it drops nothing.
    budget = _bisect(good, _least(pool, limits), most)
    return Search(
        child=child(budget, form),
        parent_metric=wanted,
        points=tuple(points[x] for x in sorted(points)),
    )


def _least(pool: Pool, limits: Rank) -> int:
    """Return the smallest budget for `min_rank`, at least one rank."""
    least = round_up(limits.min_rank, limits.multiple_of)
    floor = np.minimum(least, pool.sizes)
    return max(1, int(floor.sum()))


def _bisect(good: Callable[[int], bool], least: int, most: int) -> int:
    """Return the smallest good integer in `least` ... `most`, the last known good."""
    low, high = least - 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def _number(value: float | jax.Array, who: str) -> float:
    if math.isnan(result := float(value)):
        raise ValueError(f"The metric of {who} is NaN.")
    return result
