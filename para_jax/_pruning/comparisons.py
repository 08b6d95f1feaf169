"""Comparisons within reach of rounding: of values, of blocks, of energies.

Two singular values differ for sure if they differ by more than the errors of both,
which are relative to the largest value of each one's module.

Runs on the host.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from para_jax.linalg import energy


class Found(NamedTuple):
    """A near tie.

    Attributes:
      what: The two sides, in words.
      gap: Their difference, relative to what was kept.
      modules: The modules of the components involved, with repetitions.
    """

    what: str
    gap: float
    modules: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """The components of one comparison, and the policy's choice among them.

    Attributes:
      s: Their scores, by default the singular values, `[N]`.
      top: The largest score of each one's module, which errors are relative to, `[N]`.
      price: The root of its divisor: `s / price` orders components, `[N]`.
      module: The module of each, `[N]`, ascending.
      first: Which are the first of their block, `[N]`.
      resolved: Which do not count as zero, `[N]`.
      allowed: Which of these are within `max_rank`, `[N]`.
      free: Which of these are beyond `min_rank`, `[N]`: the policy's own choice.
      kept: Which the policy kept, `[N]`.
    """

    s: np.ndarray
    top: np.ndarray
    price: np.ndarray
    module: np.ndarray
    first: np.ndarray
    resolved: np.ndarray
    allowed: np.ndarray
    free: np.ndarray
    kept: np.ndarray

    def of(self, which: np.ndarray) -> "Choice":
        """Return some of the components."""
        fields = dataclasses.fields(self)
        return Choice(**{x.name: getattr(self, x.name)[which] for x in fields})

    def near_one(self) -> "Choice":
        """Return the same choice, its values scaled to be squared safely."""
        s, top = energy.near_one(np.stack([self.s, self.top]), np)
        return dataclasses.replace(self, s=s, top=top)

    def worth(self) -> np.ndarray:
        """Return the worth of each component by itself, `[N]`."""
        return self.s / self.price

    def worth_of_block(self) -> np.ndarray:
        """Return the worth of each component's block, a root mean square, `[N]`."""
        # The components of a module are in order, so blocks are runs of the pool.
        block = np.cumsum(self.first) - 1
        squares = np.bincount(block, np.where(self.resolved, self.worth(), 0) ** 2)
        return np.sqrt(squares / np.bincount(block))[block]


def with_threshold(x: Choice, tau: float, error: float) -> Iterator[Found]:
    """Yield the components within an error of the threshold."""
    gap = np.abs(x.s - tau)
    near = x.resolved & (gap <= error * x.top) & (tau > 0)
    if near.any():
        what = "a component equals the threshold"
        yield Found(what, gap[near].min() / tau, x.module[near])


def of_two_blocks(x: Choice, worth: np.ndarray, error: float) -> Iterator[Found]:
    """Yield the blocks of a kept and a dropped one in doubtful order."""
    margin = error * x.top / x.price
    # A component that is zero, or beyond a limit, was not for the policy to choose.
    free = x.first & x.free
    kept, dropped = free & x.kept, free & ~x.kept
    lowest = (worth - margin)[kept].min(initial=math.inf)
    highest = (worth + margin)[dropped].max(initial=-math.inf)
    near = (kept & (worth - margin <= highest)) | (dropped & (worth + margin >= lowest))
    if near.any():
        last, following = worth[kept].min(), worth[dropped].max()
        what = "the largest dropped component equals the smallest kept one"
        yield Found(what, abs(last - following) / last, x.module[near])


def of_energy(x: Choice, share: float, error: float) -> Iterator[Found]:
    """Yield the components that may be the last to drop, within an error.

    The energy dropped up to each, smallest first, is compared with the allowed share.
    """
    # To first order, since `(s + e)^2 - s^2 = 2 e s + e^2`.
    squares, doubts = x.s**2, 2 * error * x.s * x.top
    order = np.flatnonzero(x.allowed)[np.argsort(x.s[x.allowed])]
    dropped, doubt = (
        y[~x.allowed].sum() + np.cumsum(y[order]) for y in (squares, doubts)
    )
    allowed = share * squares.sum()
    near = np.abs(dropped - allowed) <= doubt + share * doubts.sum()
    if near.any():
        gap = np.abs(dropped - allowed)[near].min() / squares.sum()
        what = "the kept energy equals what is asked for"
        yield Found(what, gap, x.module[order[near]])
