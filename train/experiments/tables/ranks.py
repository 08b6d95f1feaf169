"""One parent's children against models of each rank (the paper's Figures 5, 6)."""

import dataclasses

from train.experiments import measured
from train.experiments.measured import Measured
from train.experiments.names import label
from train.experiments.results import PARENT, Files
from train.experiments.tables import blocks
from train.experiments.tables.table import INTERVAL, Table, source

METHODS = ("lora", "dylora", "matryoshka")
"""Comparisons for PARA's children: native training, and one model for all ranks."""


def by_rank(files: Files) -> dict[str, dict[str, Measured]]:
    """Return the measurements, by method and policy; the largest rank first.

    At the parent's own rank PARA is the parent.
    """
    children = measured.policies(files.rows("children"), "para", "rank")
    para = {policy: files.measure("children", "para", policy) for policy in children}
    result = {"para": {PARENT[1]: files.parent(), **para}}
    for method in METHODS:
        found = measured.policies(files.rows("trained"), method, "rank")
        if found and not any(files.partial("trained", method, x) for x in found):
            result[method] = {x: files.measure("trained", method, x) for x in found}
    return result


def tables(files: Files) -> list[Table]:
    """Return the accuracies of all, and PARA's differences to models of equal ranks."""
    found = by_rank(files)
    named = {
        f"{label(method)}, {policy}": x
        for method, models in found.items()
        for policy, x in models.items()
    }
    para = found.pop("para")
    pairs = {
        f"{label(method)}, {policy}": (para[policy], x)
        for method, models in found.items()
        for policy, x in models.items()
        if policy in para and para[policy] is not x and (method, policy) != PARENT
    }
    made = source(files, "trained", "children")
    accuracies = blocks.accuracies(named, title="Accuracy at each rank", first="model")
    if not pairs:
        return [dataclasses.replace(accuracies, notes=[*accuracies.notes, made])]
    return [
        accuracies,
        blocks.differences(
            pairs,
            title="PARA minus the model of the same rank",
            first="model",
            notes=[INTERVAL, made],
        ),
    ]
