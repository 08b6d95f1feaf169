"""The figures of the experiments, by name."""

from collections.abc import Callable

from matplotlib.figure import Figure

from train.experiments.figures import (
    fisher,
    forest,
    rank_maps,
    ranks,
    retuned,
    spectra,
    stability,
    sweeps,
)
from train.experiments.results import Files

FIGURES: dict[str, Callable[[Files], Figure]] = {
    "rank-maps": rank_maps.draw,
    "spectra": spectra.draw,
    "drop": sweeps.drop,
    "energy": sweeps.energy,
    "ranks": ranks.draw,
    "fisher": fisher.draw,
    "stability": stability.draw,
    "methods": forest.methods,
    "scores": forest.by_score,
    "retuned": retuned.draw,
}
"""Each figure; `name.png` is its file."""
