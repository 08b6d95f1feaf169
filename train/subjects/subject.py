"""A task with its model, as runs train and evaluate it."""

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from train.data import arrays
from train.evaluation import evaluate
from train.models.adapted import Model


class Subject(NamedTuple):
    """A frozen model, the data of a task, and its evaluations.

    Attributes:
      model: Maps the inputs of a batch to logits.
      base: Its frozen params, without the classifier.
      data: The training data.
      validation: The part to choose by.
      tests: The parts to report on, by the name of the set; a task that is its only
        set has its own name. The mean over tasks, or over sets, does not weigh them.
      peft: The model's entries in the `adapter_config.json` of its adapters.
      measures: Further measures to report, of a task that is its only set. Nothing
        is chosen by them, and no mean includes them: some are not accuracies.
    """

    model: Model
    base: Mapping[str, Any]
    data: arrays.Data
    validation: evaluate.Part
    tests: Mapping[str, evaluate.Part]
    peft: Mapping[str, Any]
    measures: Mapping[str, evaluate.Part] = types.MappingProxyType({})
