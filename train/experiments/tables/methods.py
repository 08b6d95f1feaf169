"""Table A: every method at an average rank of 4 (the paper's Table 2)."""

from train.experiments.measured import Measured
from train.experiments.names import label
from train.experiments.results import PARENT, Files
from train.experiments.tables import blocks, measures
from train.experiments.tables.table import INTERVAL, Table, source

TARGET = "rank 4"
METHODS = (
    "lora",
    "rslora",
    "lora+",
    "pissa",
    "milora",
    "adalora",
    "sora",
    "sora-hard",
    "sora-official",
    "dora",
    "gora",
    "dylora",
    "dylora-unfrozen",
    "matryoshka",
)
PARENT_LABEL = "LoRA r=16, parent"
PARA_LABEL = "PARA γ=.25"
MANY = (
    "No correction for the number of comparisons: of 20 intervals of equal methods, "
    "one leaves zero out."
)


def compared(files: Files) -> dict[str, Measured]:
    """Return the measurements of the parent and of each trained method."""
    found = {PARENT_LABEL: files.measure("trained", *PARENT)}
    for method in METHODS:
        policy = _policy(files, method)
        if policy and not files.partial("trained", method, policy):
            found[_name(method)] = files.measure("trained", method, policy)
    return found


def missing(files: Files) -> list[str]:
    """Return the untrained methods."""
    return [_name(x) for x in METHODS if not _policy(files, x)]


def incomplete(files: Files) -> list[str]:
    """Return the results of methods trained on some of the tasks only."""
    result = []
    for method in METHODS:
        found = files.partial("trained", method, _policy(files, method) or "")
        if found:
            seen = ", ".join(f"{task} {100 * x:.2f}" for task, x in found.items())
            result.append(f"{_name(method)} ({seen})")
    return result


def _name(method: str) -> str:
    return "LoRA r=4" if method == PARENT[0] else label(method)


def _policy(files: Files, method: str) -> str | None:
    """Return the policy of average rank 4, or a method's only one.

    SoRA's sparsity of .7 leaves 4.8; LoRA of any other rank is none of these.
    """
    found = {x.policy for x in files.rows("trained") if x.method == method}
    if TARGET in found:
        return TARGET
    return found.pop() if len(found) == 1 and method != PARENT[0] else None


def tables(files: Files) -> list[Table]:
    """Return the accuracies, the differences to PARA, and GLUE's further metrics."""
    para = files.measure("children", "para", TARGET)
    found = compared(files)
    notes = []
    if absent := missing(files):
        notes.append(f"Not in the results: {', '.join(absent)}.")
    if some := incomplete(files):
        notes.append(f"Trained on some tasks only: {', '.join(some)}.")
    everything = found | {PARA_LABEL: para}
    accuracies = blocks.accuracies(
        everything,
        title="Table A: accuracy at an average rank of 4, and of the parent",
        first="method",
        notes=notes,
    )
    differences = blocks.differences(
        {name: (para, x) for name, x in found.items()},
        title="Table A: PARA minus the method",
        first="method",
        notes=[
            INTERVAL,
            MANY,
            source(files, "trained", "children"),
        ],
    )
    return [accuracies, differences, *measures.tables(everything)]
