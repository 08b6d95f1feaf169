"""The table of `train.experiments.stability`: one row of agreements a task."""

from collections.abc import Sequence

import numpy as np

from train.experiments import stability
from train.experiments.results import Files
from train.experiments.tables.table import Table, source


def tables(files: Files) -> list[Table]:
    """Return the correlations of rank maps: mean, smallest and largest."""
    maps = stability.maps(files.file("spectra").rows)
    found = stability.over_seeds(maps)
    found |= {"between tasks": stability.over_tasks(maps)} if len(maps) > 1 else {}
    return [
        Table(
            title=f"Correlation of rank maps at average rank {stability.RANK}",
            columns=["pairs of seeds", "pairs", "Pearson", "Spearman"],
            rows=[
                [task, str(len(x.pearson)), _shown(x.pearson), _shown(x.spearman)]
                for task, x in found.items()
            ],
            notes=[
                "Mean (smallest to largest); pairs of tasks have one seed.",
                source(files, "spectra"),
            ],
        )
    ]


def _shown(x: Sequence[float]) -> str:
    return f"{np.mean(x):.2f} ({min(x):.2f} to {max(x):.2f})"
