"""Smaller adapters, cut from what a run has trained: the methods after training.

Each child has a folder of its own below the parent's run, complete when its results
are there. Host code.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import para_jax as para
from para_jax.policy import Policy
from train import fit, folder, outcome
from train.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """PARA: one threshold over the singular values of all modules, or of each one.

    Attributes:
      gammas: Shares of the ranks to keep, a child each.
      epsilons: Shares of the energy to keep, a child each.
      scope: Whether all modules share one threshold, or each has its own.
    """

    gammas: tuple[float, ...] = (0.25,)
    epsilons: tuple[float, ...] = ()
    scope: Literal["global", "local"] = "global"

    @property
    def policies(self) -> list[Policy]:
        """One a child."""
        return [
            *(para.Gamma(x, scope=self.scope) for x in self.gammas),
            *(para.Epsilon(x, scope=self.scope) for x in self.epsilons),
        ]

    def children(self, parent: para.Checkpoint) -> Sequence[para.Checkpoint]:
        """Returns one child a policy."""
        return para.family(parent, self.policies)


CUTS: dict[str, Cut] = {
    "para": Cut(),
    "local": Cut(scope="local"),
}
"""Each method that cuts a trained parent, by its name."""


def _place(parent: pathlib.Path, name: str, policy: Policy) -> pathlib.Path:
    return parent / folder.CHILDREN / f"{name}-{policy.name.replace(' ', '-')}"


def cut(
    name: str, settings: Cut, run: Run, parent: pathlib.Path
) -> dict[str, list[dict[str, Any]]]:
    """Returns the results of each child by its policy: cuts those that are not there.

    Args:
      name: The method's name.
      settings: What to cut.
      run: The settings of the parent's run.
      parent: Its folder, complete.
    """
    policies = settings.policies
    places = [_place(parent, name, policy) for policy in policies]
    found = [x for place in places if (x := folder.results(place)) is not None]
    if len(found) < len(places):
        found = _made(settings, places, fit.load(run), parent)
    names = [x.name for x in policies]
    return dict(zip(names, found, strict=True))


def _made(
    settings: Cut,
    places: Sequence[pathlib.Path],
    subject: outcome.Subject,
    parent: pathlib.Path,
) -> list[list[dict[str, Any]]]:
    """Returns the results of all children, which replace those that are there."""
    members = outcome.load(folder.results(parent) or [], parent / folder.PARENT)
    families = [
        settings.children(x.adapter) if x.adapter else [None] * len(places)
        for x in members
    ]
    found = []
    for where, children in zip(places, zip(*families, strict=True), strict=True):
        some = [
            x._replace(adapter=child)
            for x, child in zip(members, children, strict=True)
        ]
        outcome.save(some, where)
        rows = outcome.rows(some, subject)
        folder.write(where / folder.RESULTS, {"rows": rows})
        found.append(rows)
    return found
