"""What a run trains and is evaluated on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from train import evaluate
from train.data import arrays
from train.models.adapted import Model


class Subject(NamedTuple):
    """A frozen model, the data of a task, and what its results are.

    Attributes:
      model: Maps the inputs of a batch to logits.
      base: Its frozen params, without the classifier.
      data: The examples.
      peft: What the `adapter_config.json` of its adapters says of the model.
      accuracies: How adapters are evaluated; by default as classifiers.
    """

    model: Model
    base: Mapping[str, Any]
    data: arrays.Data
    peft: Mapping[str, Any]
    accuracies: evaluate.Accuracies = evaluate.accuracies
