"""Rank maps from spectra, and their correlation over seeds and over tasks."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from scipy import stats

import para_jax as para
from train.experiments.missing import Missing
from train.experiments.rows import TASKS, Spectrum

RANK = 4
"""The average rank of the maps."""

Maps = Mapping[str, Mapping[int, Mapping[str, int]]]
"""The kept rank by task, seed and module."""


class Agreement(NamedTuple):
    """The correlations of pairs of rank maps, over modules.

    Attributes:
      pearson: The correlation of the ranks, one number a pair.
      spearman: The correlation of the modules' order.
    """

    pearson: Sequence[float]
    spearman: Sequence[float]


def maps(spectra: Sequence[Spectrum], rank: float = RANK) -> Maps:
    """Return PARA's ranks for every module of every parent.

    Args:
      spectra: The singular values of all modules.
      rank: The average rank to keep.
    """
    parents: dict[tuple[str, int], dict[str, para.Spectrum]] = {}
    for x in spectra:
        parents.setdefault((x.task, x.seed), {})[x.module] = _as_spectrum(x)
    result: dict[str, dict[int, dict[str, int]]] = {}
    # Tasks in their order, whatever that of the file.
    for task in TASKS:
        for (name, seed), modules in parents.items():
            if name == task:
                kept = para.ranks(modules, para.Rank(rank))
                ranks = {path: int(kept[path]) for path in sorted(kept)}
                result.setdefault(task, {})[seed] = ranks
    return result


def over_seeds(found: Maps) -> dict[str, Agreement]:
    """Return the agreement of each two seeds of the same task.

    Raises:
      Missing: if there are less than two seeds.
    """
    return {
        task: _agreement(list(itertools.combinations(seeds.values(), 2)))
        for task, seeds in found.items()
    }


def over_tasks(found: Maps) -> Agreement:
    """Return the agreement of each two tasks of the same seed.

    Raises:
      Missing: if there are less than two tasks with a seed in common.
    """
    pairs = [
        (left[seed], right[seed])
        for left, right in itertools.combinations(found.values(), 2)
        for seed in left.keys() & right.keys()
    ]
    return _agreement(pairs)


def _as_spectrum(x: Spectrum) -> para.Spectrum:
    """Return the argument of `para.ranks`, which reads the values and sizes alone."""
    values = jnp.asarray(x.values)
    # The bases are not read; any matrices of the right size will do.
    unread = jnp.eye(values.size)
    return para.Spectrum(
        s=values,
        left=unread,
        right=unread,
        shape=(x.m, x.n),
        dtype="float32",
        nominal=values.size,
    )


def _agreement(
    pairs: Sequence[tuple[Mapping[str, int], Mapping[str, int]]],
) -> Agreement:
    if not pairs:
        raise Missing(
            "Rank maps agree or not in pairs: spectra.json needs two seeds of each "
            "task, and two tasks.",
            what="no pairs in spectra.json",
        )
    ranks = [
        # Both maps in the order of the left one's modules.
        ([left[path] for path in left], [right[path] for path in left])
        for left, right in pairs
    ]
    return Agreement(
        pearson=[float(stats.pearsonr(x, y).statistic) for x, y in ranks],
        spearman=[float(stats.spearmanr(x, y).statistic) for x, y in ranks],
    )
