"""What adapters are evaluated on: movie sentiment, on the base all-MiniLM-L6-v2."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import para_jax as para
from para_jax.flax import linen
from train import evaluate
from train.data import sentiment, tokens
from train.data.batch import Batch
from train.models import bert, pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """The base model and the sentences that the adapters are evaluated on.

    Attributes:
      model: The encoder with a classifier.
      encoder: The encoder's parameters.
      batches: The sentences.
    """

    model: bert.BertClassifier
    encoder: Mapping[str, Any]
    batches: Sequence[Batch]

    @property
    def sentences(self) -> int:
        return sum(batch.examples for batch in self.batches)


def load(folder: pathlib.Path, limit: int | None = None) -> Task:
    """Returns the task, on the first `limit` sentences of the test part.

    Args:
      folder: The files of all-MiniLM-L6-v2.
      limit: The number of sentences; all by default.
    """
    config = bert.read_config(folder)
    data = sentiment.load("movie", "test")
    ids = tokens.encode(tokens.load_tokenizer(folder), data.texts[:limit])
    return Task(
        model=bert.BertClassifier(config, len(sentiment.CLASSES)),
        encoder=pretrained.load(folder, config),
        batches=tokens.batches(ids, data.labels[:limit]),
    )


def accuracy(
    task: Task,
    adapter: para.Checkpoint,
    *,
    like: para.Checkpoint | None = None,
    on_batch: Callable[[int], object] = lambda sentences: None,
) -> float:
    """Returns the accuracy of the base with `adapter` and its own classifier.

    Args:
      task: What to evaluate on.
      adapter: A loaded checkpoint.
      like: Its parent: the child is filled up to the parent's shapes, with zeros, and
        no new program is compiled.
      on_batch: Called after each batch with its number of sentences.
    """
    params = {
        "bert": task.encoder,
        "classifier": pretrained.classifier(adapter.extra),
    }
    adapters = adapter.adapters
    if like is not None:
        adapters = para.pad(adapters, like=like.adapters)
    lora = para.to_params(adapters)
    linen.check(lora, params)
    return evaluate.accuracy(task.model, params, lora, task.batches, on_batch=on_batch)
