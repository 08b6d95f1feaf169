"""Settings of the methods after training, by name: the children of a parent.

A parent is the adapter of one member; each method makes one child or more of it.
`train.posthoc.children` evaluates and saves them. Runs on the host.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import para_jax as para
from para_jax import Adapter
from train import posthoc
from train.models import pretrained
from train.subjects.subject import Subject


@runtime_checkable
class Cut(Protocol):
    """The settings of a method after training: a frozen dataclass of plain values."""

    def names(self) -> list[str]:
        """Return a name for each child, such as `gamma-0.25`, unique to its settings.

        Raises:
          ValueError: if a setting is impossible.
        """
        ...

    def children(
        self, parent: para.Checkpoint, subject: Subject
    ) -> Sequence[para.Checkpoint]:
        """Return the children, with the parent's classifier.

        Args:
          parent: A trained adapter.
          subject: What it was trained on, for methods that look at sentences: only at
            those of the validation part.

        Raises:
          ValueError: if the parent cannot be cut so.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Para:
    """PARA: one threshold over the singular values of all modules.

    Attributes:
      gammas: Shares of the ranks to keep, a child each.
      epsilons: Shares of the energy to keep, a child each.
    """

    gammas: tuple[float, ...] = (0.25,)
    epsilons: tuple[float, ...] = ()

    def names(self) -> list[str]:
        return [x.name.replace(" ", "-") for x in self._policies]

    def children(
        self, parent: para.Checkpoint, subject: Subject
    ) -> Sequence[para.Checkpoint]:
        return para.family(parent, self._policies)

    @property
    def _policies(self) -> list[para.Policy]:
        gammas = [para.Gamma(x) for x in self.gammas]
        return [*gammas, *(para.Epsilon(x) for x in self.epsilons)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local:
    """Equal ranks for every module: the paper's ablation.

    Ranks left over by the division go to the modules with the largest next value,
    so that the total equals PARA's.

    Attributes:
      gammas: Shares of the ranks to keep, a child each.
    """

    gammas: tuple[float, ...] = (0.25,)

    def names(self) -> list[str]:
        return [f"gamma-{x.value:g}" for x in self._policies]

    def children(
        self, parent: para.Checkpoint, subject: Subject
    ) -> Sequence[para.Checkpoint]:
        return para.family(parent, self._policies)

    @property
    def _policies(self) -> list[para.Policy]:
        return [para.Gamma(x, scope="local", remainder="greedy") for x in self.gammas]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FisherPara:
    """PARA with the Fisher information of each component as its score.

    Attributes:
      gammas: Shares of the ranks to keep, a child each.
      batches: The number of batches of the validation part to look at.
      batch: Sentences a batch.
    """

    gammas: tuple[float, ...] = (0.25,)
    batches: int = 50
    batch: int = 32

    def names(self) -> list[str]:
        looked_at = f"{self.batches}x{self.batch}"
        return [f"gamma-{para.Gamma(x).value:g}-{looked_at}" for x in self.gammas]

    def children(
        self, parent: para.Checkpoint, subject: Subject
    ) -> Sequence[para.Checkpoint]:
        head = pretrained.head(parent.extra)
        given = posthoc.Parent(
            adapters=parent.adapters,
            model=subject.model,
            # Gradients pass through the classifier that was trained with the adapter.
            params={**subject.base, "classifier": head},
            statistics={},  # For scores without data.
            validation=posthoc.examples_of(subject.validation.batches),
            batch=self.batch,
            fisher_batches=self.batches,
        )
        # One ranking serves all budgets.
        ranking = posthoc.PRUNERS["fisher"](given)
        found = [posthoc.prune(ranking, para.Gamma(x)) for x in self.gammas]
        return [_child(parent, x) for x in found]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropTop:
    """The opposite of PARA: all but the strongest components of the model.

    Attributes:
      counts: The numbers of components to drop, a child each.
    """

    counts: tuple[int, ...] = (8,)

    def names(self) -> list[str]:
        return [f"drop-{x}" for x in self.counts]

    def children(
        self, parent: para.Checkpoint, subject: Subject
    ) -> Sequence[para.Checkpoint]:
        # One decomposition serves all counts.
        parts = posthoc.decompose(parent.adapters)
        masks = [posthoc.drop_top(parts, x) for x in self.counts]
        return [_child(parent, posthoc.child(parts, x)) for x in masks]


CUTS: dict[str, Cut] = {
    "para": Para(),
    "local": Local(),
    "fisher-para": FisherPara(),
    "drop-top": DropTop(),
}
"""Each method after training, with its default settings."""


def _child(parent: para.Checkpoint, adapters: dict[str, Adapter]) -> para.Checkpoint:
    return dataclasses.replace(parent, adapters=adapters)
