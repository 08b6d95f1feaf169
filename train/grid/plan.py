"""Which runs the comparison takes, and the one protocol that all of them follow.

Every method of every task trains at each rate of one small grid with the seeds of
`SEARCH`, and where the best of them is at an end of the grid, at those outside it too.
The rate of the best mean validation accuracy trains the seeds of `REST`. The test part
is looked at once, for the chosen rate. LoRA's scale is the same at all ranks.
"""

import dataclasses

from train.data import sentiment
from train.methods import METHODS, Config, dylora, lora, matryoshka, sora
from train.run import Run

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""The learning rates that each method tries."""

OUTER = (1e-5, 3e-5, 1e-2, 3e-2)
"""Those that it tries besides, where the best of `RATES` is the first or the last. As
many: one compiled program for both."""

SEARCH = (0, 1)
"""The seeds that choose the rate."""

REST = (2, 3, 4, 5, 6, 7, 8, 9)
"""The other seeds. As many members as in the search: one compiled program for both."""

SETTINGS = Run()
"""The rest of every run."""

RANKS = (16, 8, 4, 2, 1)
"""Native ranks, and those at which a model of many ranks is evaluated."""

CUTS = (8, 4, 2, 1, 0.5)
"""Average ranks of children."""

SHARES = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Parameters of children, as shares of the parent's: those of `CUTS` on average."""

ENERGIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999)
DROPPED = (1, 2, 4, 8, 16, 32, 64, 128)

RETUNED = (2, 1, 0.5)
"""Average ranks of the children that are trained on."""

MORE = (0.01, 0.05, 0.1)
"""For how long, as shares of the parent's steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One method of the grid.

    Attributes:
      name: Of its files.
      method: As rows call it.
      config: Its settings.
      ranks: At which it is evaluated; None is what it ends with.
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
)
"""The methods of the grid, those of the paper's tables first."""

TASKS = sentiment.TASKS


def search(task: str, config: Config, settings: Run = SETTINGS) -> Run:
    """Returns the run that tries the learning rates of one method on one task."""
    return dataclasses.replace(
        settings, task=task, method=config, seeds=SEARCH, learning_rates=RATES
    )


def outside(search: Run) -> Run:
    """Returns the run of the learning rates outside of those that were tried."""
    return dataclasses.replace(search, learning_rates=OUTER)


def rest(search: Run, rate: float) -> Run:
    """Returns the run of the other seeds, at the rate that was chosen."""
    return dataclasses.replace(search, seeds=REST, learning_rates=(rate,))
