"""Scores: how components of different modules compare.

The paper pools singular values as they are, so modules with large updates take the most
of a budget: whole ranks of feed-forward projections, and little of attention's. A score
divides the singular values of each module by a power of a norm: of its own update, or
of the kernel that it updates. Within a module the order stays.

Traceable under `jit`, and the same text on NumPy arrays.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from para_jax._adapters.choices import ScoreName
from para_jax._pruning.pool import Pool
from para_jax.linalg import energy

Norms = Mapping[str, Any] | tuple[tuple[str, tuple[float, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """Order components by `sigma / norm^power` instead of `sigma`. Ours.

    `Score(0)` is the paper's order, which policies also know as `"sigma"`, and
    `Score(1)` is `"relative"`: each component's share of its own module's update.

    Example:
      >>> para_jax.ranks(para_jax.decompose(adapters), para_jax.Gamma(0.5))
      {'down': array(1), 'up': array(2)}
      >>> score = para_jax.Score(norms={"up": 32, "down": 1})
      >>> policy = para_jax.Gamma(0.5, score=score)
      >>> policy.name
      'gamma 0.5 base'
      >>> para_jax.compress(adapters, policy).report.ranks
      {'down': 2, 'up': 1}

    Attributes:
      power: The power of the norm, 0 or more.
      norms: The norm of each module by path, a number or `[*stack]`, such as the
        Frobenius norms of the base's kernels. By default that of its own update.
    """

    power: float = 1.0
    norms: Norms | None = None

    def __post_init__(self) -> None:
        power = self.power
        if not isinstance(power, numbers.Real) or not 0 <= power < math.inf:
            raise ValueError(
                f"power must be a number from 0 up, got {power!r}. Norms are given by "
                "name: Score(norms=...)."
            )
        if self.norms is None:
            return
        found = {
            path: tuple(np.ravel(np.asarray(x, np.float64)).tolist())
            for path, x in dict(self.norms).items()
        }
        # Plain values: a policy's static part is hashed and compared by `jit`.
        object.__setattr__(self, "norms", tuple(sorted(found.items())))
        for path, values in found.items():
            bad = [x for x in values if not 0 < x < math.inf]
            if bad or not values:
                raise ValueError(
                    f"'{path}': the norm is {bad[0] if bad else 'missing'}, expected a "
                    "number above 0. A kernel of zeros cannot be compared with."
                )

    def __str__(self) -> str:
        if not self.power:
            return "sigma"
        power = "" if self.power == 1 else f" {self.power:g}"
        return f"{'relative' if self.norms is None else 'base'}{power}"


_NAMED: dict[ScoreName, Score] = {"sigma": Score(0.0), "relative": Score(1.0)}


def named(score: ScoreName | Score) -> Score:
    """Return the score of a name.

    Raises:
      ValueError: if there is none.
    """
    if isinstance(score, Score):
        return score
    if score not in _NAMED:
        known = ", ".join(map(repr, _NAMED))
        raise ValueError(f"score must be {known} or a Score, got {score!r}.")
    return _NAMED[score]


def scored(
    s: Any, score: ScoreName | Score, pool: Pool, xp: Any, *, scale_free: bool
) -> Any:
    """Return the score of each component, `[N]`.

    It is the singular value, divided and multiplied by one number a module each, so
    rounding keeps the order within modules. Of an update of rank 1 the relative score
    is exactly 1.

    Args:
      s: The singular values, `[N]`.
      score: The score.
      pool: The pool.
      xp: `numpy`, or `jax.numpy` while tracing.
      scale_free: Whether ratios alone count: all scores may be scaled alike.

    Raises:
      ValueError: if the score has no norm for a module.
    """
    score = named(score)
    if not score.power:
        return s
    if score.norms is not None:
        norms = _norms(score, pool)
        # Beside the smallest: their powers would leave the range of float32.
        factor = ((norms / norms.min()) if scale_free else norms) ** -score.power
        return s * xp.asarray(factor, s.dtype)[pool.module]
    place, exists = pool.rows
    rows = xp.where(exists, s[place], 0)
    # Each module at its own scale: the squares of a small one would be zero.
    unit = energy.unit(rows.max(1, keepdims=True), xp)
    rows = rows / unit
    norm = xp.sqrt((rows * rows).sum(1, keepdims=True))
    norm = xp.where(norm > 0, norm, 1)
    # Not times an inverse, which would round twice; nor by a power of 1.
    values = rows / norm
    if score.power != 1:
        values = rows / norm**score.power * unit ** (1 - score.power)
    return values[pool.module, pool.index]


def weights(s: np.ndarray, score: ScoreName | Score, pool: Pool) -> np.ndarray:
    """Return the number that each module's singular values are multiplied with, `[M]`.

    Runs on the host.

    Args:
      s: The singular values, float64 `[N]`.
      score: The score.
      pool: The pool.
    """
    largest = s[pool.start]
    found = scored(s, score, pool, np, scale_free=False)[pool.start]
    return np.divide(found, largest, out=np.ones_like(found), where=largest > 0)


def _norms(score: Score, pool: Pool) -> np.ndarray:
    """Return the norm of each module, float64 `[M]`."""
    norms, result = dict(score.norms or ()), []
    for path, shape in pool.shapes.items():
        count = math.prod(shape[:-1])
        if path not in norms:
            raise ValueError(
                f"The score has no norm for '{path}', got those of {len(norms)} "
                f"modules: {', '.join(sorted(norms)[:3])}. Give one for each module."
            )
        if len(norms[path]) not in (1, count):
            raise ValueError(
                f"'{path}': {len(norms[path])} norms, expected one for each of its "
                f"{count} kernels."
            )
        result += [*np.broadcast_to(norms[path], count)]
    return np.array(result, np.float64)
