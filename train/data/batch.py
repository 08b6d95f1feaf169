"""What a model is evaluated on, and trained on: inputs and their labels."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int

NO_LABEL = -1
"""The label of what does not count: a row that only fills up a batch, a prompt."""


class Batch(NamedTuple):
    """Inputs of one shape, and their labels.

    Attributes:
      inputs: What the model takes: arrays with a leading axis `B`.
      labels: Classes `[B]`, or `[B, T]` for a model that names one at each position.
    """

    inputs: Any
    labels: Int[jax.Array | np.ndarray, "B *T"]

    @property
    def examples(self) -> int:
        """The number of labels that count."""
        return int(np.sum(np.asarray(self.labels) != NO_LABEL))


@runtime_checkable
class Examples(Protocol):
    """What is trained on, as arrays on the device. A pytree."""

    def batch(self, rows: Int[jax.Array, "B"]) -> Batch:
        """Returns some of the examples. Traced."""
        ...


@runtime_checkable
class Stream(Protocol):
    """What is trained on, made while the device computes: too much to stay there."""

    def chunks(
        self, seed: int, *, steps: int, batch: int, start: int, stop: int, size: int
    ) -> Iterator[Examples]:
        """Yields the batches of every `size` steps, from `start` until `stop`.

        Row `i * batch + j` of a chunk is example `j` of its step `i`. What a step reads
        depends on the seed and on the step alone, so that a run can be resumed.

        Args:
          seed: It decides the order, and what is random in an example.
          steps: Of the whole run.
          batch: Examples a step.
          start: The first step.
          stop: The step after the last.
          size: Steps of a chunk; the last one may have fewer.
        """
        ...
