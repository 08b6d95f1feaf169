"""The share of the energy in the first ranks: the flatness of the parents' spectra."""

from collections.abc import Sequence

import numpy as np

from train.experiments.results import Files
from train.experiments.rows import TASKS, Spectrum
from train.experiments.tables.table import Table, source

RANKS = (8, 4, 2, 1)


def kept(spectra: Sequence[Spectrum], rank: float) -> dict[str, list[float]]:
    """Return, by task, the share of the energy in the largest components of a parent.

    Args:
      spectra: The singular values of all modules of all parents.
      rank: The average number of components kept a module.
    """
    modules: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for x in spectra:
        modules.setdefault((x.task, x.seed), []).append(x.values)
    found: dict[str, list[float]] = {task: [] for task in TASKS}
    for (task, _), values in modules.items():
        # All modules together: PARA's threshold is global.
        energies = np.sort(np.square(np.concatenate(values)))[::-1]
        count = int(rank * len(values))
        found[task].append(float(energies[:count].sum() / energies.sum()))
    return {task: shares for task, shares in found.items() if shares}


def tables(files: Files) -> list[Table]:
    """Return the shares by task and rank, means over seeds."""
    found = {rank: kept(files.file("spectra").rows, rank) for rank in RANKS}
    return [
        Table(
            title="Energy that is kept, by average rank",
            columns=["task", *(f"rank {rank}" for rank in RANKS)],
            rows=[
                [task, *(f"{100 * np.mean(found[x][task]):.1f}" for x in RANKS)]
                for task in found[RANKS[0]]
            ],
            notes=["In %, mean over seeds.", source(files, "spectra")],
        )
    ]
