"""Sweeps: accuracy by the kept share of energy, and by dropped top components."""

from train.experiments import measured
from train.experiments.measured import Measured
from train.experiments.results import Files
from train.experiments.tables import blocks
from train.experiments.tables.table import INTERVAL, Table, source


def sweep(files: Files, method: str, kind: str) -> dict[str, Measured]:
    """Return the measurements of a method, by policy; the largest value first.

    Raises:
      Missing: if there is none.
    """
    found = measured.policies(files.rows("children"), method, kind)
    if not found:
        files.measure("children", method, kind)  # Says what is missing.
    return {policy: files.measure("children", method, policy) for policy in found}


def epsilon(files: Files) -> list[Table]:
    """Return the accuracy and the rank at each share of energy (Figures 4 and 8)."""
    found = sweep(files, "para", "epsilon")
    return _tables(files, found, "that keep a share of the energy", "policy")


def drop(files: Files) -> list[Table]:
    """Return the accuracy without the largest components (the paper's Figure 3)."""
    found = sweep(files, "drop-top", "drop")
    # Policies come from the largest value down.
    smallest_first = dict(reversed(found.items()))
    return _tables(files, smallest_first, "without their largest components", "policy")


def _tables(
    files: Files, found: dict[str, Measured], what: str, first: str
) -> list[Table]:
    parent = files.parent()
    return [
        blocks.accuracies(found, title=f"Children {what}", first=first),
        blocks.differences(
            {policy: (x, parent) for policy, x in found.items()},
            title=f"Children {what}, minus their parents",
            first=first,
            notes=[INTERVAL, source(files, "trained", "children")],
        ),
    ]
