"""Batches: inputs and their labels, for training and evaluation."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int

NO_LABEL = -1
"""The label of positions without one: rows that fill up a batch, prompts."""


class Batch(NamedTuple):
    """Inputs of one shape, and their labels.

    Attributes:
      inputs: The inputs of the model: arrays with a leading axis `B`.
      labels: Classes `[B]`, or `[B, T]` for a model that names one at each position.
    """

    inputs: Any
    labels: Int[jax.Array | np.ndarray, "B *T"]

    @property
    def examples(self) -> int:
        """The number of labels other than `NO_LABEL`."""
        return int(np.sum(np.asarray(self.labels) != NO_LABEL))


@runtime_checkable
class Examples(Protocol):
    """Training examples as arrays on the device. A pytree."""

    def batch(self, rows: Int[jax.Array, "B"]) -> Batch:
        """Return some of the examples. Traceable under `jit`."""
        ...


@runtime_checkable
class Stream(Protocol):
    """Training examples made while the device computes, as they exceed its memory."""

    def chunks(
        self, seed: int, *, steps: int, batch: int, start: int, stop: int, size: int
    ) -> Iterator[Examples]:
        """Yield the batches of every `size` steps, from `start` until `stop`.

        Row `i * batch + j` of a chunk is example `j` of its step `i`. A step's
        examples depend on the seed and on the step alone, so that a run can be
        resumed.

        Args:
          seed: The seed of the order, and of random changes to an example.
          steps: The number of steps of the whole run.
          batch: Examples a step.
          start: The first step.
          stop: The step after the last.
          size: Steps of a chunk; the last one may have fewer.
        """
        ...
