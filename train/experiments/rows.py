"""Rows of results: an evaluated model, a spectrum, a cost."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

from train.data import digits, sentiment, sources

_COMMONSENSE, _MATHEMATICS = (
    tuple(x.name for x in found if "test" in x.parts)
    for found in (sources.COMMONSENSE, sources.MATHEMATICS)
)
SETS = {
    "commonsense": _COMMONSENSE,
    "mathematics": _MATHEMATICS,
    # The same questions, answered by choosing.
    "choose": tuple(f"choose/{name}" for name in _COMMONSENSE),
}
"""Training tasks with several test sets, and these sets."""

TASKS = (
    *sentiment.TASKS,
    *digits.TASKS,
    "problems",
    *(x.name for x in (*sources.IMAGES, *sources.GLUE)),
    "rte",
    *(name for task, sets in SETS.items() for name in (task, *sets)),
)
"""The tasks of all comparisons, in the order of every table."""

_TRAINED_ON = {name: task for task, sets in SETS.items() for name in sets}
_SHARE = (0.0, 1.0)
_COUNT = (0, math.inf)
_POSITIVE = (5e-324, math.inf)  # The smallest float above zero.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """An evaluated model.

    Attributes:
      task: One of `TASKS`. Of those in `SETS` it is the set that it was evaluated on;
        a model that lost the search for the learning rate was evaluated on none.
      method: The training method, or the method of cutting the parent.
      policy: The budget, such as `rank 4` (on average), `params 0.25` (of its
        parent's), `epsilon 0.99`, `drop 8`; empty if it was not told.
      seed: The seed of the training, or of the parent's.
      rank_total: Over all modules.
      modules: The number of kernels with an adapter in the parent.
      params: The number of parameters in the LoRA factors alone.
      accuracy: On the test part, 0 to 1; None if it was not looked at.
      validation: The accuracy on the validation part.
      learning_rate: The rate of the training, or of the parent's.
      config: The name of its configuration in the file.
      steps: Of its training; those after the cut if it was trained on.
      measures: Further metrics of GLUE's task, -1 to 1: `matthews` of CoLA, `f1` of
        MRPC, and the accuracy on the part `mismatched` of MNLI. No mean has it.
    """

    task: str
    method: str
    policy: str
    seed: int
    rank_total: int
    modules: int
    params: int
    accuracy: float | None = None
    validation: float | None = None
    learning_rate: float
    config: str
    steps: int
    measures: Mapping[str, float] | None = None

    limits: ClassVar = {
        "seed": _COUNT,
        "rank_total": _COUNT,
        "modules": (1, math.inf),
        "params": _COUNT,
        "accuracy": _SHARE,
        "validation": _SHARE,
        "learning_rate": _POSITIVE,
        "steps": _COUNT,
        "measures": (-1.0, 1.0),
    }

    @property
    def key(self) -> tuple[str, str, str, int, float]:
        """The unique key of a row in its file."""
        return self.task, self.method, self.policy, self.seed, self.learning_rate

    @property
    def trained_on(self) -> str:
        """The training task; several test sets may share one."""
        return _TRAINED_ON.get(self.task, self.task)

    @property
    def average_rank(self) -> float:
        return self.rank_total / self.modules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The singular values of one module of a parent.

    Attributes:
      task: One of `TASKS`.
      seed: The seed of the training.
      module: The kernel's path.
      m: The number of inputs.
      n: The number of outputs.
      values: Descending.
    """

    task: str
    seed: int
    module: str
    m: int
    n: int
    values: tuple[float, ...]

    limits: ClassVar = {
        "seed": _COUNT,
        "m": (1, math.inf),
        "n": (1, math.inf),
        "values": _COUNT,
    }

    @property
    def key(self) -> tuple[str, int, str]:
        """The unique key of a row in its file."""
        return self.task, self.seed, self.module


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The training cost of one method.

    Attributes:
      method: The method's name.
      policy: The budget of the result, such as `rank 16`.
      step_seconds: The time of one step.
      peak_bytes: The peak memory of a step's compiled program, by XLA's account;
        None if it does not say.
    """

    method: str
    policy: str
    step_seconds: float
    peak_bytes: int | None = None

    limits: ClassVar = {"step_seconds": _POSITIVE, "peak_bytes": _COUNT}

    @property
    def key(self) -> tuple[str, str]:
        """The unique key of a row in its file."""
        return self.method, self.policy
