"""Children of a run's members, each in its own folder within the run's.

`train.posthoc.cuts` says which children there are; this module cuts, evaluates and
saves them. A child's folder is complete once it holds results. If all folders are
complete, nothing is done; otherwise all children are cut again.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from train import subjects
from train.posthoc.cuts import Cut
from train.runs import folder, outcome
from train.runs.settings import Run

Rows = list[dict[str, Any]]


def cut(
    name: str,
    settings: Cut,
    run: Run,
    parent: pathlib.Path,
    *,
    folders: subjects.Folders = subjects.ANYWHERE,
) -> dict[str, Rows]:
    """Return the results of each child by name, cutting all unless all exist.

    Args:
      name: The method's name.
      settings: The settings of the children.
      run: The settings of the parent's run.
      parent: The run's folder, complete.
      folders: The folders of models and data sets of the hub.

    Raises:
      OSError: if a folder cannot be written.
      ValueError: if a parent cannot be cut so, or a folder is damaged.
    """
    places = [parent / folder.CHILDREN / f"{name}-{x}" for x in settings.names()]
    # All or none: a family is cut from one decomposition.
    found = [x for place in places if (x := folder.results(place)) is not None]
    if len(found) < len(places):
        found = _made(settings, places, subjects.load(run, folders), parent)
    return dict(zip(settings.names(), found, strict=True))


def _made(
    settings: Cut,
    places: Sequence[pathlib.Path],
    subject: subjects.Subject,
    parent: pathlib.Path,
) -> list[Rows]:
    """Cut and evaluate all children; return their results, replacing earlier ones."""
    members = outcome.load(folder.results(parent) or [], parent / folder.PARENT)
    families = [
        [None] * len(places)
        if x.adapter is None
        else settings.children(x.adapter, subject)
        for x in members
    ]
    found = []
    for place, children in zip(places, zip(*families, strict=True), strict=True):
        pairs = zip(members, children, strict=True)
        some = [member._replace(adapter=child) for member, child in pairs]
        outcome.save(some, place)
        rows = outcome.rows(some, subject, like=members)
        # Written last: with its results, a child's folder is complete.
        folder.write(place / folder.RESULTS, {"rows": rows})
        found.append(rows)
    return found
