"""What a run trains and is evaluated on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from train.data import arrays
from train.models.adapted import Model


class Subject(NamedTuple):
    """A frozen model, and the data of a task.

    Attributes:
      model: Maps the inputs of a batch to logits.
      base: Its frozen params, without the classifier.
      data: The examples.
      peft: What the `adapter_config.json` of its adapters says of the model.
    """

    model: Model
    base: Mapping[str, Any]
    data: arrays.Data
    peft: Mapping[str, Any]
