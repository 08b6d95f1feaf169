"""Compute PARA again in plain float64 NumPy, as an oracle. Runs on the host.

It shares only the containers it reads with the package, so it is an oracle for every
precision, method and device of the package.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from para_jax._adapters.adapter import Adapter
from para_jax._pruning.policies import Budget, Epsilon, Gamma, Params, Policy, Rank

RESOLUTION = 2.0**-23
"""A value up to `r` times this share of its module's largest counts as zero."""

Kernels = Mapping[tuple[str | int, ...], "Kernel"]


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """Hold the SVD of one update `[m, n]`.

    Attributes:
      u: `[m, k]`.
      s: `[k]`, descending, `k = min(m, n, r)`.
      vt: `[k, n]`.
      rank: The rank `r` of the adapter.
      norms: The sum of the norms of the update's `r` rank-one parts. Rounding is
        relative to it.
    """

    u: np.ndarray
    s: np.ndarray
    vt: np.ndarray
    rank: int
    norms: float

    @property
    def cost(self) -> int:
        """The parameters of one component."""
        return self.u.shape[0] + self.vt.shape[1]

    @property
    def floor(self) -> float:
        """The threshold up to which a singular value counts as zero."""
        return self.rank * RESOLUTION * self.top

    @property
    def top(self) -> float:
        """The largest singular value."""
        return float(self.s[0])

    @property
    def resolved(self) -> int:
        """The number of components that count as nonzero."""
        return int((self.s > self.floor).sum())

    def product(self, components: slice = slice(None)) -> np.ndarray:
        """Return the part of the update made of these components, `[m, n]`."""
        return (self.u[:, components] * self.s[components]) @ self.vt[components]


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """Hold the result of a policy.

    Attributes:
      ranks: The ranks of the kernels.
      gap: The difference in worth between the last kept and the first dropped
        component, as singular values relative to the first values of their modules. An
        error below it does not change their order.
      slack: For `Epsilon`, the distance between the requested share and the kept share
        or any other possible share.
    """

    ranks: dict[tuple[str | int, ...], int]
    gap: float = math.inf
    slack: float = math.inf


def kernels(adapters: Mapping[str, Adapter]) -> dict[tuple[str | int, ...], Kernel]:
    """Return the SVD of each kernel, by its path and its index in the stack."""
    result = {}
    for path, x in adapters.items():
        a, b = (np.asarray(y, np.float64) for y in (x.a, x.b))
        for index in np.ndindex(x.stack):
            result[path, *index] = _kernel(a[index], x.scale * b[index])
    return result


def _kernel(a: np.ndarray, b: np.ndarray) -> Kernel:
    q_a, r_a = np.linalg.qr(a)
    q_b, r_b = np.linalg.qr(b.T)
    u, s, vt = np.linalg.svd(r_a @ r_b.T, full_matrices=False)
    norms = float(np.linalg.norm(a, axis=0) @ np.linalg.norm(b, axis=1))
    return Kernel(u=q_a @ u, s=s, vt=vt @ q_b.T, rank=a.shape[1], norms=norms)


def cut(found: Kernels, policy: Policy) -> Cut:
    """Return the choice of a global policy without limits: a prefix of one order."""
    module = np.repeat(np.arange(len(found)), [len(x.s) for x in found.values()])
    s = np.concatenate([x.s for x in found.values()])
    floor, top, cost = (
        np.array([getattr(x, name) for x in found.values()], float)[module]
        for name in ("floor", "top", "cost")
    )
    if not isinstance(policy, Params):
        cost = np.ones_like(s)
    resolved = s > floor
    weight = _weights(found, policy)[module]
    s, top = weight * s, weight * top
    # A price weighs singular values alone. Squares would over- or underflow.
    weighed = cost if (weight == 1).all() else np.ones_like(s)
    worth = s / np.sqrt(weighed)
    order = np.argsort(-worth, kind="stable")
    order = order[resolved[order]]
    dropped = _dropped(s, order)
    if isinstance(policy, Budget):
        keep = int((np.cumsum(cost[order]) <= _budget(policy, found)).sum())
    elif isinstance(policy, Epsilon):
        keep = int((dropped[:-1] > (1 - policy.value) * (1 + 1e-14)).sum())
        keep = int((s[order] >= s[order][: max(keep, 1)].min(initial=np.inf)).sum())
    else:
        keep = int((s[order] >= policy.value).sum())
    ranks = np.bincount(module[order[:keep]], minlength=len(found))
    gap = math.inf
    if 0 < keep < len(order):
        pair = order[keep - 1 : keep + 1]
        gap = float(-np.diff(worth[pair])[0] / (top / np.sqrt(weighed))[pair].max())
    slack = math.inf
    if isinstance(policy, Epsilon):
        slack = float(np.abs(dropped - (1 - policy.value)).min())
    return Cut(dict(zip(found, ranks.tolist(), strict=True)), gap, slack)


def _weights(found: Kernels, policy: Policy) -> np.ndarray:
    """Return the number that makes scores of each kernel's singular values."""
    if isinstance(policy.score, str):
        power, norms = {"sigma": 0, "relative": 1}[policy.score], None
    else:
        power, norms = policy.score.power, dict(policy.score.norms or ())
    own = [np.linalg.norm(x.s) for x in found.values()]
    if norms:
        # Of stacks, one norm for each index of their one axis.
        own = [norms[path][index[0] if index else 0] for path, *index in found]
    return np.array(own, float) ** -float(power)


def _dropped(s: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the lost share of the energy if `0 ... N` components are kept."""
    unit = s / (s.max() or 1)
    squares = unit[order] ** 2
    left_out = (unit**2).sum() - squares.sum()
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0) + max(left_out, 0)
    return tails / (tails[0] or 1)


def _budget(policy: Budget, found: Kernels) -> int:
    if isinstance(policy, Gamma):
        total = sum(len(x.s) for x in found.values())
        return max(1, math.floor(policy.value * total + 1e-9))
    if isinstance(policy, Rank):
        return math.floor(policy.value * len(found) + 1e-9)
    return int(policy.value)
