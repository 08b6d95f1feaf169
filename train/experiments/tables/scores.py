"""Pruning scores against the singular value."""

from collections.abc import Sequence

from train.experiments import measured, statistics
from train.experiments.measured import MEAN
from train.experiments.names import label
from train.experiments.results import Files
from train.experiments.statistics import Interval, Sample
from train.experiments.tables.table import INTERVAL, Table, percent, points, source

BASELINE = "para"
"""The baseline: the singular value itself."""

KINDS = {"rank": "average rank", "params": "share of the parent's parameters"}
# Children of `para` under other names, and of other choices than a score.
LOCAL = "local"
NOT_SCORES = (BASELINE, LOCAL, "drop-top")


def scores(files: Files, kind: str) -> list[str]:
    """Return the scores measured at budgets of a kind, in the order of the rows."""
    rows = files.rows("children")
    found = dict.fromkeys(x.method for x in rows if x.method not in NOT_SCORES)
    return [x for x in found if measured.policies(rows, x, kind)]


def budgets(files: Files, kind: str) -> list[str]:
    """Return the policies measured for the singular value."""
    found = measured.policies(files.rows("children"), BASELINE, kind)
    if not found:
        files.measure("children", BASELINE, kind)  # Says what is missing.
    return found


def interval(files: Files, score: str, policy: str) -> Interval | None:
    """Return the difference to the singular value, of the mean over tasks.

    None where the score was not measured at that budget.
    """
    if not files.has("children", score, policy):
        return None
    mine = files.measure("children", score, policy)
    return measured.differences(mine, files.measure("children", BASELINE, policy))[MEAN]


def tables(files: Files) -> list[Table]:
    """Return one block for budgets in ranks, and one for those in parameters."""
    blocks = [_table(files, kind, words) for kind, words in KINDS.items()]
    notes = ["Means over tasks.", INTERVAL, source(files, "children")]
    last = blocks[-1]
    return [
        *blocks[:-1],
        Table(title=last.title, columns=last.columns, rows=last.rows, notes=notes),
    ]


def _table(files: Files, kind: str, words: str) -> Table:
    policies = budgets(files, kind)
    baseline = [_mean(files, BASELINE, policy) for policy in policies]
    rows = [
        ["σ (PARA)", *map(percent, baseline), percent(statistics.average(baseline))]
    ]
    # The same cut everywhere is no score, but another way to spend the budget.
    same = [LOCAL] if measured.policies(files.rows("children"), LOCAL, kind) else []
    for score in [*scores(files, kind), *same]:
        found = [interval(files, score, policy) for policy in policies]
        cells = ["–" if x is None else points(x) for x in found]
        rows.append([label(score), *cells, _overall(files, score, policies, baseline)])
    return Table(
        title=f"Scores by {words}: accuracy of σ, and differences to it",
        columns=["score", *(f"{measured.value(x):g}" for x in policies), "all"],
        rows=rows,
    )


def _overall(
    files: Files, score: str, policies: Sequence[str], baseline: Sequence[Sample]
) -> str:
    """Return the difference of the mean over budgets, if there are results for all."""
    if not all(files.has("children", score, policy) for policy in policies):
        return "–"
    mine = statistics.average([_mean(files, score, policy) for policy in policies])
    return points(statistics.paired(mine, statistics.average(baseline)))


def _mean(files: Files, score: str, policy: str) -> Sample:
    return files.measure("children", score, policy).accuracy[MEAN]
