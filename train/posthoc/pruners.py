"""All pruners of a trained parent, under one interface.

A pruner takes the parent apart and ranks the parts, once; every budget is then a walk
down that ranking.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from para_jax import Adapter, Budget
from train.models.adapted import Model
from train.posthoc import activations, components, examples, fisher, selection, whiten
from train.posthoc.base import Statistics
from train.posthoc.components import Components
from train.posthoc.examples import Examples
from train.posthoc.scores import SCORES, Score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parent:
    """A trained parent, and the inputs of pruners.

    Attributes:
      adapters: One kernel each.
      model: Maps inputs to logits.
      params: The model's: base and classifier.
      statistics: The base's, see `train.posthoc.base.statistics`.
      validation: Labelled examples `[N, ...]` that no result is reported on.
      batch: The examples of a batch.
      fisher_batches: The number of batches for Fisher-PARA; 50 in the paper.
      moment_batches: The number of batches, without their labels, for whitening.
    """

    adapters: Mapping[str, Adapter]
    model: Model
    params: Mapping[str, Any]
    statistics: Mapping[str, Statistics]
    validation: Examples
    batch: int = 32
    fisher_batches: int = 50
    moment_batches: int = 8


class Ranking(NamedTuple):
    """A parent's components, and their scores."""

    components: Mapping[str, Components]
    scores: Mapping[str, Float[np.ndarray, " k"]]


Pruner = Callable[[Parent], Ranking]


def prune(ranking: Ranking, policy: Budget) -> dict[str, Adapter]:
    """Return the child within a policy's budget: ragged, of scale 1, NumPy arrays.

    The policy may be local; then give it `remainder="greedy"` for the same total.

    Raises:
      ValueError: as `train.posthoc.selection.choose`.
    """
    masks = selection.choose(*ranking, policy)
    return components.child(ranking.components, masks)


def scored(parent: Parent, score: Score) -> Ranking:
    """Return the singular components, ranked by a score without data."""
    parts = components.decompose(parent.adapters)
    scores = {path: score(x, parent.statistics[path]) for path, x in parts.items()}
    return Ranking(parts, scores)


def by_type(parent: Parent) -> Ranking:
    """Return the singular components, ranked within modules of one type as PARA does.

    Each singular value is divided by the root mean square of the updates' norms over
    the layers: `query` of layer 3 competes with the other queries alone, and all types
    have a like share. Modules of one type have like inputs and the same place in the
    model, so that the sizes of their updates say more than those of others. Ours.
    """
    parts = components.decompose(parent.adapters)
    types = {path: re.sub(r"\d+", "*", path) for path in parts}
    norms: dict[str, list[float]] = {}
    for path, x in parts.items():
        norms.setdefault(types[path], []).append(float(np.linalg.norm(x.s)))
    # A type without any update has no component to keep, whatever it is divided by.
    means = {name: np.sqrt(np.mean(np.square(x))) or 1.0 for name, x in norms.items()}
    return Ranking(parts, {path: x.s / means[types[path]] for path, x in parts.items()})


def by_fisher(parent: Parent, mode: fisher.Mode) -> Ranking:
    """Return the singular components, ranked by their Fisher information."""
    parts, found = _information(parent, mode)
    return Ranking(parts, {p: np.asarray(x.total, float) for p, x in found.items()})


def by_sensitivity(parent: Parent) -> Ranking:
    """Return the singular components, ranked by `s_j^2 F(s_j) / 2`.

    The loss that setting `s_j` to zero costs, to second order with the Fisher
    information as a diagonal Hessian. Ours.
    """
    parts, found = _information(parent, "example")
    scores = {
        # Second order: the rise of the loss when the component goes to 0.
        path: parts[path].s ** 2 * np.asarray(x.s, np.float64) / 2
        for path, x in found.items()
    }
    return Ranking(parts, scores)


def whitened(parent: Parent, *, diagonal: bool) -> Ranking:
    """Return components in the metric of the inputs, or of their squares alone."""
    batches = _batches(parent, parent.moment_batches).inputs
    adapters = dict(parent.adapters)
    found = activations.moments(parent.model, parent.params, adapters, batches)
    # To the host: whitening is float64.
    found = jax.device_get(found)
    grams = {path: x.gram for path, x in found.items()}
    if diagonal:
        squares = {path: x.square for path, x in found.items()}
        grams = whiten.diagonal(adapters, squares)
    parts = whiten.whitened(adapters, grams)
    return Ranking(parts, {path: x.s for path, x in parts.items()})


def _information(parent: Parent, mode: fisher.Mode) -> tuple[Any, Any]:
    parts = components.decompose(parent.adapters)
    batches = _batches(parent, parent.fisher_batches)
    found = fisher.fisher(parent.model, parent.params, parts, batches, mode=mode)
    return parts, jax.device_get(found)


def _batches(parent: Parent, count: int) -> Examples:
    return examples.batches(parent.validation, size=parent.batch, count=count)


PRUNERS: dict[str, Pruner] = {
    **{name: functools.partial(scored, score=score) for name, score in SCORES.items()},
    "by-type": by_type,
    "fisher": functools.partial(by_fisher, mode="example"),
    "fisher-batch": functools.partial(by_fisher, mode="batch"),
    "sensitivity": by_sensitivity,
    "whitened": functools.partial(whitened, diagonal=False),
    "whitened-diagonal": functools.partial(whitened, diagonal=True),
}
"""Each pruner by its name. PARA is `sigma`; local pruning is a policy's scope."""
