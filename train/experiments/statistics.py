"""Means over seeds, and paired confidence intervals of differences.

A sample is a number for each seed. Two methods are paired by seed: both share the
seed's draws (the order of the data, the head's start), so their effect cancels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Sample = Mapping[int, float]
"""A number by seed."""


class Interval(NamedTuple):
    """A confidence interval of a mean: `mean - half` to `mean + half`.

    Attributes:
      mean: The middle.
      half: Half its width; infinite if there is one seed only.
      seeds: The number of seeds.
    """

    mean: float
    half: float
    seeds: int

    @property
    def side(self) -> int:
        """1 if the interval is above zero, -1 if below, 0 if it contains zero."""
        return int(np.sign(self.mean)) if abs(self.mean) > self.half else 0


def mean(sample: Sample) -> float:
    """Return the mean over seeds."""
    return float(np.mean(list(sample.values())))


def std(sample: Sample) -> float:
    """Return the sample standard deviation over seeds; NaN for one seed."""
    if len(sample) < 2:
        # One seed has no spread.
        return math.nan
    return float(np.std(list(sample.values()), ddof=1))


def average(samples: Sequence[Sample]) -> dict[int, float]:
    """Average over samples, for the seeds common to all of them.

    Raises:
      ValueError: if they have no seed in common.
    """
    return {
        seed: float(np.mean([sample[seed] for sample in samples]))
        for seed in _common(samples)
    }


def paired(left: Sample, right: Sample, *, confidence: float = 0.95) -> Interval:
    """Return the interval of the mean of `left - right`, by Student's t.

    Args:
      left: One number a seed.
      right: The numbers to compare with. Only seeds in both count.
      confidence: The confidence of the two-sided interval.

    Raises:
      ValueError: if they have no seed in common.
    """
    seeds = _common([left, right])
    differences = np.array([left[seed] - right[seed] for seed in seeds])
    n = len(seeds)
    middle = float(differences.mean())
    # One difference has no variance.
    if n == 1:
        return Interval(middle, math.inf, 1)
    # Student's t: there are few seeds.
    error = differences.std(ddof=1) / math.sqrt(n)
    return Interval(middle, float(stats.t.ppf((1 + confidence) / 2, n - 1) * error), n)


def _common(samples: Sequence[Sample]) -> list[int]:
    seeds = set.intersection(*(set(sample) for sample in samples))
    if not seeds:
        # The message lists the seeds, since their sets are the mistake.
        held = "; ".join(", ".join(map(str, sorted(x))) for x in samples)
        raise ValueError(f"Samples without a common seed cannot be paired: {held}.")
    return sorted(seeds)
