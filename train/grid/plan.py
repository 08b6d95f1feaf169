"""The runs of a comparison, and their common protocol.

Every method of every task trains at each rate of one small grid with the first seeds,
and where the best of them is at an end of the grid, at those outside it too. The rate
of the best mean validation accuracy trains the other seeds. The test part is looked at
once, for the chosen rate. LoRA's scale is the same at all ranks.
"""

import dataclasses
from collections.abc import Mapping

from train import posthoc
from train.data import digits, sentiment
from train.methods import (
    METHODS,
    Config,
    adalora,
    annealed,
    dylora,
    lora,
    matryoshka,
    sora,
)
from train.runs.settings import Run
from train.subjects import Folders, problems

RANKS = (16, 8, 4, 2, 1)
"""Native ranks, and evaluation ranks of the models with many ranks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One method of the grid.

    Attributes:
      name: The name of its files.
      method: The method's name in rows.
      config: The method's settings.
      ranks: The ranks to evaluate at; by default its own at the end.
    """

    name: str
    method: str
    config: Config
    ranks: tuple[int, ...] | None = None


def _native(rank: int) -> Entry:
    return Entry(name=f"lora-{rank}", method="lora", config=lora.Lora(rank=rank))


PARENT = _native(16)
"""The parent of all children."""

ENTRIES = (
    PARENT,
    *map(_native, RANKS[1:]),
    Entry(name="lora-half", method="lora", config=lora.Lora(rank=1, share=0.5)),
    *(
        Entry(name=name, method=name, config=METHODS[name])
        for name in ("adalora", "sora", "dora", "gora")
    ),
    Entry(name="dylora", method="dylora", config=dylora.Dylora(), ranks=RANKS),
    *(
        Entry(name=name, method=name, config=METHODS[name])
        for name in ("rslora", "lora+", "pissa", "milora")
    ),
    Entry(
        name="matryoshka",
        method="matryoshka",
        config=matryoshka.Matryoshka(),
        ranks=RANKS,
    ),
    Entry(
        name="dylora-unfrozen",
        method="dylora-unfrozen",
        config=dylora.Dylora(mode="unfrozen"),
        ranks=RANKS,
    ),
    Entry(
        name="sora-hard",
        method="sora-hard",
        config=sora.Sora(target_sparsity=0.75, hard_finish=True),
    ),
    Entry(
        name="sora-official",
        method="sora-official",
        config=sora.Sora(variant="official"),
    ),
    Entry(name="annealed", method="annealed", config=METHODS["annealed"]),
    *(
        Entry(name=f"{name}-{target}", method=name, config=config(target=target))
        for name, config in (
            ("annealed", annealed.Annealed),
            ("adalora", adalora.AdaLora),
        )
        for target in RANKS[3:]
    ),
)
"""The methods of the grid, those of the paper's tables first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One comparison.

    Attributes:
      tasks: The training tasks.
      settings: The rest of every run.
      entries: The methods.
      steps: The numbers of steps of tasks that differ from `settings`.
      rates: The learning rates that each method tries.
      outer: Further rates to try if the best of `rates` is the first or the
        last; equally many, so that one compiled program serves both.
      search_seeds: The seeds of the search for the rate.
      other_seeds: As many members as in the search: one compiled program for both.
      cuts: Average ranks of children.
      shares: Parameters of children, as shares of the parent's: those of `cuts` on
        average.
      pruners: The pruners of these children, from `train.posthoc`.
      energies: Kept shares of the energy.
      dropped: Numbers of strongest components to drop.
      retuned: Average ranks of the children that are trained on.
      more: The lengths of re-tuning, as shares of the parent's steps.
      folders: The folders of models and data of the hub.
    """

    tasks: tuple[str, ...]
    settings: Run = dataclasses.field(default_factory=Run)
    entries: tuple[Entry, ...] = ENTRIES
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    outer: tuple[float, ...] = (1e-5, 3e-5, 1e-2, 3e-2)
    search_seeds: tuple[int, ...] = (0, 1)
    other_seeds: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9)
    cuts: tuple[float, ...] = (8, 4, 2, 1, 0.5)
    shares: tuple[float, ...] = (0.5, 0.25, 0.125, 0.0625, 0.03125)
    pruners: tuple[str, ...] = tuple(posthoc.PRUNERS)
    energies: tuple[float, ...] = (
        *(0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97),
        *(0.99, 0.995, 0.999),
    )
    dropped: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    retuned: tuple[float, ...] = (2, 1, 0.5)
    more: tuple[float, ...] = (0.01, 0.05, 0.1)
    folders: Folders = dataclasses.field(default_factory=Folders)

    def settings_of(self, task: str) -> Run:
        """Return the settings of every run on a task."""
        steps = self.steps.get(task, self.settings.steps)
        return dataclasses.replace(self.settings, task=task, steps=steps)

    def search(self, task: str, config: Config, settings: Run) -> Run:
        """Return the search over the learning rates of one method on one task."""
        return dataclasses.replace(
            settings,
            task=task,
            method=config,
            seeds=self.search_seeds,
            learning_rates=self.rates,
        )

    def outside(self, search: Run) -> Run:
        """Return the run of the learning rates just outside the search."""
        return dataclasses.replace(search, learning_rates=self.outer)

    def rest(self, search: Run, rate: float) -> Run:
        """Return the run of the other seeds, at the chosen rate."""
        return dataclasses.replace(
            search, seeds=self.other_seeds, learning_rates=(rate,)
        )


_OF_BERT = ("at-inputs", "at-embeddings", "whitened", "whitened-diagonal")
"""Pruners for BERT's blocks only."""

PRUNERS = tuple(x for x in posthoc.PRUNERS if x not in _OF_BERT)
"""Pruners for models of any form."""

DATA_FREE = (
    *(x for x in posthoc.SCORES if x not in (*_OF_BERT, "by-spectral")),
    "by-type",
)
"""Scores without data, for models of any form."""

SENTIMENT = Plan(tasks=sentiment.TASKS)
VISION = Plan(
    tasks=digits.TASKS,
    settings=Run(task=digits.TASKS[0], steps=600, backbone=""),
    search_seeds=(0,),
    other_seeds=(1, 2, 3, 4),
    pruners=PRUNERS,
    retuned=(),
)
"""Half the seeds of sentiment: most of these tasks leave few mistakes to compare."""
PROBLEMS = Plan(
    tasks=problems.TASKS,
    settings=Run(task=problems.TASKS[0], steps=1000, backbone=""),
    entries=tuple(map(_native, RANKS[:4])),
    rates=(5e-4, 1e-3, 2e-3, 4e-3),
    outer=(1e-4, 2e-4, 8e-3, 1.6e-2),
    search_seeds=(0,),
    other_seeds=(1, 2, 3, 4),
    cuts=(8, 4, 2),
    shares=(),
    pruners=("sigma",),
    energies=(0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999),
    dropped=(),
    retuned=(8, 4, 2),
    more=(0.1,),
)
"""Generation takes long: native ranks, and PARA's children, only."""
