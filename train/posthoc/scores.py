"""Importance of components without data: one line a score. Runs on the host.

The paper's own is `sigma`. All others are ours: a component's effect on the output
depends on the kernel's size, on its worth a parameter, and on the size of its inputs,
none of which the singular value contains. And what an update does to its module may
count more than its size beside other modules' updates: `by-update` keeps the sum of all
modules' relative errors small, `by-tail` the largest of them.

Axis letters: `m` inputs, `n` outputs, `k` components.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from train.posthoc.base import Statistics
from train.posthoc.components import Components

_FIRST = 1e30  # Beyond the ratio of any two scores.

Score = Callable[[Components, Statistics], Float[np.ndarray, " k"]]


def _known(square: Float[np.ndarray, " m"] | None) -> Float[np.ndarray, " m"]:
    if square is None:
        raise ValueError(
            "What LayerNorms say of a kernel's inputs is known of BERT alone: leave "
            "the scores at-inputs and at-embeddings out."
        )
    return square


def _floored(score: Score) -> Score:
    """Return a score by which every module's best component comes before all others."""

    def first(x: Components, base: Statistics) -> Float[np.ndarray, " k"]:
        found = score(x, base)
        # Among themselves the best ones keep their order, for budgets below one each.
        return np.where(np.arange(len(found)) == 0, _FIRST * found, found)

    return first


SCORES: dict[str, Score] = {
    # s: the paper's. The least error in the weights for a number of ranks.
    "sigma": lambda x, base: x.s,
    # s^2 / (m + n): the least error in the weights for a number of parameters.
    "per-parameter": lambda x, base: x.s**2 / sum(x.spectrum.shape),
    # s / ||W||_F: the change relative to the kernel.
    "by-frobenius": lambda x, base: x.s / base.frobenius,
    # s / ||W||_2: the change relative to the kernel's strongest direction.
    "by-spectral": lambda x, base: x.s / base.spectral,
    # s / ||delta||_F: the component's share of its own module's update.
    "by-update": lambda x, base: x.s / np.linalg.norm(x.s),
    # s / ||delta||_F^p: between the paper's and the one before.
    "by-update-0.25": lambda x, base: x.s / np.linalg.norm(x.s) ** 0.25,
    "by-update-0.5": lambda x, base: x.s / np.linalg.norm(x.s) ** 0.5,
    "by-update-0.75": lambda x, base: x.s / np.linalg.norm(x.s) ** 0.75,
    # The same by the root of the parameters that a component takes.
    "by-update-per-parameter": lambda x, base: (
        x.s / np.linalg.norm(x.s) / np.sqrt(sum(x.spectrum.shape))
    ),
    # The relative error of the module without this component and those below it: every
    # module is cut at the same one.
    "by-tail": lambda x, base: (
        np.sqrt(np.cumsum(x.s[::-1] ** 2)[::-1]) / np.linalg.norm(x.s)
    ),
    # s ||sqrt(d) * u||: the root mean square of its output, x u s v^T, for uncorrelated
    # inputs with E[x^2] = d as the base's LayerNorms predict it.
    "at-inputs": lambda x, base: x.s * np.sqrt(_known(base.square) @ x.u**2),
    # The same, but that layer 0 reads the vocabulary's embeddings.
    "at-embeddings": lambda x, base: x.s * np.sqrt(_known(base.embedded) @ x.u**2),
}
SCORES |= {f"{name}-floor": _floored(SCORES[name]) for name in ("sigma", "by-update")}
"""Each score of components `[k]` by its name. Higher is better."""
