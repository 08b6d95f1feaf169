"""All children of the parents of one task: pruned, stacked, and evaluated together.

A child is made by a pruner within a budget. PARA is the score `sigma`; with it go the
local ablation, the energy sweep, and the opposite of PARA, which drops the top.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import para_jax as para
from train import posthoc
from train.experiments.rows import Row, Spectrum
from train.grid import plan, training
from train.methods.method import Adapters, size

PARA = "sigma"
"""The paper's score among those of `train.posthoc`."""


class Child(NamedTuple):
    """One child, and its names in a row."""

    method: str
    policy: str
    adapters: Adapters


class Parent(NamedTuple):
    """One trained parent.

    Attributes:
      seed: The seed of its training.
      adapters: One kernel each, NumPy arrays.
      head: The classifier.
    """

    seed: int
    adapters: Adapters
    head: Mapping[str, np.ndarray]


def parents(trained: training.Trained) -> list[Parent]:
    """Return the trained members, by seed."""
    # Finishing needs no schedule, so any number of steps will do.
    method = plan.PARENT.config.method(0)
    result = []
    for i, seed in enumerate(trained.seeds):
        state, head = jax.tree.map(
            lambda x: x[i],  # noqa: B023
            (trained.learners.state, trained.learners.head),
        )
        result.append(Parent(seed, method.finish(state), head))
    return result


def rows(
    place: training.Place, rate: float, parent: Parent, base: Mapping[str, Any]
) -> list[Row]:
    """Evaluate all children of one parent on each test set; return their rows.

    Args:
      place: The task of the parent's training.
      rate: The learning rate that it was trained with.
      parent: It.
      base: The statistics of the base, from `posthoc.statistics`.
    """
    family = list(children(place, parent, base))
    # All children in one stack: one compiled program for a parent.
    lora = posthoc.stack([x.adapters for x in family], like=parent.adapters)
    heads = jax.tree.map(lambda x: np.stack([x] * len(family)), dict(parent.head))
    collection = place.subject.model.adapted.collection(lora)
    models = [_row(place, rate, parent, child) for child in family]
    return training.tested(place, models, heads, collection)


def children(
    place: training.Place, parent: Parent, base: Mapping[str, Any]
) -> Iterator[Child]:
    """Yield the children of one parent."""
    given = posthoc.Parent(
        adapters=parent.adapters,
        model=place.subject.model,
        params={**place.subject.base, "classifier": parent.head},
        statistics=base,
        validation=posthoc.examples_of(place.subject.validation.batches),
    )
    # Shares are of the parent's parameters, as the budget counts them.
    total = sum(x.parameters for x in parent.adapters.values())
    ranks = {f"rank {x:g}": para.Rank(x) for x in place.plan.cuts}
    shares = {f"params {x:g}": para.Params(int(x * total)) for x in place.plan.shares}
    for name in place.plan.pruners:
        ranking = posthoc.PRUNERS[name](given)
        for policy, budget in (ranks | shares).items():
            method = "para" if name == PARA else name
            yield Child(method, policy, posthoc.prune(ranking, budget))
    yield from _of_para(parent, place.plan)


def spectra(place: training.Place, parent: Parent) -> list[Spectrum]:
    """Return the singular values of one parent."""
    return [
        Spectrum(
            task=place.task,
            seed=parent.seed,
            module=path,
            m=x.a.shape[0],
            n=x.b.shape[1],
            values=tuple(map(float, x.s)),
        )
        for path, x in posthoc.decompose(parent.adapters).items()
    ]


def _row(place: training.Place, rate: float, parent: Parent, child: Child) -> Row:
    ranks, parameters = size(child.adapters)
    return Row(
        task=place.task,
        method=child.method,
        policy=child.policy,
        seed=parent.seed,
        rank_total=ranks,
        modules=len(parent.adapters),
        params=parameters,
        learning_rate=rate,
        config=plan.PARENT.name,
        steps=place.settings.steps,
    )


def _of_para(parent: Parent, budgets: plan.Plan) -> Iterator[Child]:
    """Yield comparisons from singular values alone: local, by energy, and drop-top."""
    parts = posthoc.decompose(parent.adapters)
    scores = {path: x.s for path, x in parts.items()}
    found = {path: x.spectrum for path, x in parts.items()}
    for cut in budgets.cuts:
        local = para.Rank(cut, scope="local", remainder="greedy")
        masks = posthoc.choose(parts, scores, local)
        yield Child("local", f"rank {cut:g}", posthoc.child(parts, masks))
    total = sum(x.parameters for x in parent.adapters.values())
    for share in budgets.shares:
        budget = int(share * total)
        local = para.Params(budget, scope="local", remainder="greedy")
        masks = posthoc.choose(parts, scores, local)
        yield Child("local", f"params {share:g}", posthoc.child(parts, masks))
    for energy in budgets.energies:
        ranks = para.ranks(found, para.Epsilon(energy))
        masks = {p: np.arange(len(x.s)) < ranks[p] for p, x in found.items()}
        yield Child("para", f"epsilon {energy:g}", posthoc.child(parts, masks))
    for count in budgets.dropped:
        masks = posthoc.drop_top(parts, count)
        yield Child("drop-top", f"drop {count}", posthoc.child(parts, masks))
