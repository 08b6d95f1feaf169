"""What a model is evaluated on, and trained on: inputs and their labels."""

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
