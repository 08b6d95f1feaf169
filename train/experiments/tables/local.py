"""Table B: one threshold for the model, or one rank for all (the paper's Table 5)."""

from train.experiments import measured
from train.experiments.measured import Measured
from train.experiments.results import Files
from train.experiments.tables import blocks
from train.experiments.tables.table import INTERVAL, Table, source


def pairs(files: Files) -> dict[str, tuple[Measured, Measured]]:
    """Return global and local children by their policy, the largest first."""
    found = measured.policies(files.rows("children"), "local", "rank")
    return {
        policy: (
            files.measure("children", "para", policy),
            files.measure("children", "local", policy),
        )
        for policy in found
    }


def tables(files: Files) -> list[Table]:
    """Return the accuracies of both, and their differences."""
    found = pairs(files)
    if not found:
        files.measure("children", "local", "rank 4")  # Says what is missing.
    both = {}
    for policy, (left, right) in found.items():
        both[f"global, {policy}"], both[f"local, {policy}"] = left, right
    return [
        blocks.accuracies(
            both, title="Table B: global and local pruning", first="pruning"
        ),
        blocks.differences(
            found,
            title="Table B: global minus local, at the same total rank",
            first="average",
            notes=[INTERVAL, source(files, "children")],
        ),
    ]
