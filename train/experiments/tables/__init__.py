"""The tables of the experiments, by name."""

from collections.abc import Callable, Sequence

from train.experiments.results import Files
from train.experiments.tables import (
    cost,
    energy,
    local,
    methods,
    ranks,
    rates,
    retuned,
    scores,
    stability,
    sweeps,
)
from train.experiments.tables.table import Table

TABLES: dict[str, Callable[[Files], Sequence[Table]]] = {
    "a": methods.tables,
    "b": local.tables,
    "ranks": ranks.tables,
    "epsilon": sweeps.epsilon,
    "drop": sweeps.drop,
    "scores": scores.tables,
    "energy": energy.tables,
    "stability": stability.tables,
    "retuned": retuned.tables,
    "cost": cost.tables,
    "rates": rates.tables,
}
"""Each table; some consist of several blocks."""
