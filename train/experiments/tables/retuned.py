"""Squeeze and re-tune: small children, trained again for a short while."""

from collections.abc import Mapping
from typing import NamedTuple

from train.experiments import measured
from train.experiments.measured import MEAN, Measured
from train.experiments.results import Files
from train.experiments.tables.table import INTERVAL, Table, percent, points, source

METHOD = "retuned"


class Budget(NamedTuple):
    """The measurements at one average rank.

    Attributes:
      retuned: By the share of the parent's steps; 0 is the child as it was cut.
      native: LoRA trained at that rank for the whole time.
    """

    retuned: Mapping[float, Measured]
    native: Measured


def budgets(files: Files) -> dict[str, Budget]:
    """Return the budgets of the re-tuned children, the largest rank first.

    Raises:
      Missing: if there are none, or not of the tasks of native LoRA.
      ValueError: if a policy does not read `rank 2 steps 0.05`.
    """
    found: dict[str, dict[float, Measured]] = {}
    policies = {x.policy for x in files.rows("retuned") if x.method == METHOD}
    for policy in sorted(policies, key=_parse):
        rank, share = _parse(policy)
        name = f"rank {-rank:g}"
        cut = {0.0: files.measure("children", "para", name)}
        models = found.setdefault(name, cut)
        models[share] = files.measure("retuned", METHOD, policy)
    if not found:
        files.measure("retuned", METHOD, "rank 1 steps 0.1")  # Says what is missing.
    result = {
        name: Budget(models, files.measure("trained", "lora", name))
        for name, models in found.items()
    }
    for budget in result.values():
        measured.columns([budget.native, *budget.retuned.values()])
    return result


def tables(files: Files) -> list[Table]:
    """Return the accuracies, and the differences to native LoRA and to the parent."""
    found, parent = budgets(files), files.parent()
    shares = sorted({share for x in found.values() for share in x.retuned})
    columns = ["average", *(f"{share:.0%}" for share in shares)]
    title = "Children trained on, by the share of the parent's steps"
    accuracies = [
        [name, *_cells(x, shares), _shown(x.native), _shown(parent)]
        for name, x in found.items()
    ]
    to_native = [[name, *_minus(x, shares, x.native)] for name, x in found.items()]
    to_parent = [[name, *_minus(x, shares, parent)] for name, x in found.items()]
    counts = {len(x.accuracy[MEAN]) for y in found.values() for x in y.retuned.values()}
    seeds = " or ".join(map(str, sorted(counts)))
    spread = f"Accuracy in %, mean over tasks; standard deviation over {seeds} seeds."
    return [
        Table(
            title=title,
            columns=[*columns, "native LoRA", "parent r=16"],
            rows=accuracies,
            notes=[spread],
        ),
        Table(title=f"{title}, minus native LoRA", columns=columns, rows=to_native),
        Table(
            title=f"{title}, minus the parent",
            columns=columns,
            rows=to_parent,
            notes=[INTERVAL, source(files, "retuned", "trained", "children")],
        ),
    ]


def _parse(policy: str) -> tuple[float, float]:
    """Parse a policy: return minus the rank, and the share of the steps."""
    words = policy.split(" ")
    try:
        if len(words) != 4 or words[0] != "rank" or words[2] != "steps":
            raise ValueError
        return -float(words[1]), float(words[3])
    except ValueError:
        raise ValueError(
            f"retuned.json: policy '{policy}' is none of a child that was trained on, "
            "expected one such as 'rank 2 steps 0.05'."
        ) from None


def _cells(budget: Budget, shares: list[float]) -> list[str]:
    return [_shown(budget.retuned[x]) if x in budget.retuned else "–" for x in shares]


def _minus(budget: Budget, shares: list[float], other: Measured) -> list[str]:
    return [
        points(measured.differences(budget.retuned[x], other)[MEAN])
        if x in budget.retuned
        else "–"
        for x in shares
    ]


def _shown(x: Measured) -> str:
    return percent(x.accuracy[MEAN])
