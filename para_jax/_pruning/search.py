"""The smallest child that is good enough: the validation-guided search. Host."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from para_jax._adapters.adapter import Adapter, Adapters
from para_jax._adapters.checkpoint import Checkpoint, Child, as_checkpoint
from para_jax._adapters.padding import pad
from para_jax._pruning.pipeline import cut, spectra_of
from para_jax._pruning.policies import Rank
from para_jax._pruning.pool import Pool, pool
from para_jax._pruning.repack import Form
from para_jax.linalg.products import Method

_ROUNDING = 1e-6  # A relative error of what drops at most numerical zeros.

Metric = Callable[[Mapping[str, Adapter]], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One child that the search tried.

    Attributes:
      kept_rank: Its ranks in all.
      average_rank: Its ranks a module.
      metric: What the caller's function gave for it.
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
    """What the search found.

    Attributes:
      child: The smallest accepted child. One that drops nothing equals the parent, so
        it is accepted without a call of the metric, and is not among `points`.
      parent_metric: The metric of the parent.
      points: Every child that was tried, smallest first.
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
    """Returns the smallest child whose metric stays within `tolerance` of the parent's.

    Children nest, so it bisects over the number of ranks: about `log2(total_rank)`
    calls of `metric`, after one decomposition. Bisection takes the metric to rise with
    the rank; where it does not, the answer is a good child but may not be the smallest,
    and `points` shows it. Use data that no reported number comes from.

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
      tolerance: How much less than the parent's metric is good enough, 0 or more.
      limits: A policy whose `scope`, `min_rank`, `max_rank` and `multiple_of` all
        children keep to; its budget does not count.
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
    layout = pool(spectra)
    wanted = _number(metric(checkpoint.adapters), "the parent")
    points: dict[int, Point] = {}

    def policy(budget: int) -> Rank:
        return dataclasses.replace(limits, value=budget / layout.modules)

    def good(budget: int) -> bool:
        child = cut(checkpoint, spectra, policy(budget), form="padded").adapters
        got = metric(pad(child, like=checkpoint.adapters))
        points[budget] = Point(
            kept_rank=budget,
            average_rank=budget / layout.modules,
            metric=_number(got, f"{budget} ranks"),
            tolerated=wanted - tolerance,
        )
        return points[budget].accepted

    most = layout.total_rank
    # A child that drops nothing is the parent, but for rounding: it is good by itself.
    lossless = cut(checkpoint, spectra, policy(most)).report.error < _ROUNDING
    if not lossless and not good(most):
        raise ValueError(
            f"Not even {most} ranks, the largest child within the limits, are good "
            "enough. Allow a larger tolerance, or a larger max_rank."
        )
    budget = _bisect(good, _least(layout, limits), most)
    return Search(
        child=cut(checkpoint, spectra, policy(budget), form=form),
        parent_metric=wanted,
        points=tuple(points[x] for x in sorted(points)),
    )


def _least(layout: Pool, limits: Rank) -> int:
    """Returns the smallest budget that pays for `min_rank`, at least one rank."""
    q = limits.multiple_of
    floor = np.minimum(-(-limits.min_rank // q) * q, layout.sizes)
    return max(1, int(floor.sum()))


def _bisect(good: Callable[[int], bool], least: int, most: int) -> int:
    """Returns the smallest good integer in `least` ... `most`, the last known good."""
    low, high = least - 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def _number(value: float | jax.Array, who: str) -> float:
    if math.isnan(result := float(value)):
        raise ValueError(f"The metric of {who} is NaN.")
    return result
