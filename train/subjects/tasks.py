"""The demo's tasks: shipped adapters, their frozen bases and test data.

`movie`: the sentiment of sentences, by all-MiniLM-L6-v2. `armenian`: the letters in
pictures, by the small encoder of glyphs. The adapters of both ship with this package.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import para_jax as para
from train.data import digits, sentiment, tokens
from train.data.batch import Batch
from train.evaluation import evaluate
from train.models import bert, layers, pretrained, siglip
from train.models.adapted import Model
from train.subjects import pictures

_ASSETS = pathlib.Path(__file__).parent.parent / "assets"

MOVIE = _ASSETS / "minilm-movie-r16"
"""The folder of the adapter of `movie`."""

ARMENIAN = _ASSETS / "glyphs-armenian-r16"
"""The folder of the adapter of `armenian`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """An adapter, its base, and the test part of its data.

    Attributes:
      name: The name of the task.
      parent: The folder of the adapter.
      noun: The name of the examples.
      model: Maps the inputs of a batch to logits.
      base: Its frozen params, without the classifier.
      batches: The examples.
    """

    name: str
    parent: pathlib.Path
    noun: str
    model: Model
    base: Mapping[str, Any]
    batches: Sequence[Batch]

    @property
    def examples(self) -> int:
        return sum(batch.examples for batch in self.batches)


def movie(*, limit: int | None = None, folder: pathlib.Path | None = None) -> Task:
    """Return three-way sentiment of film reviews.

    Args:
      limit: The number of sentences of the test part, from the first; all by default.
      folder: The files of all-MiniLM-L6-v2, as for `pretrained.find_folder`.

    Raises:
      FileNotFoundError: if they are not there.
      ValueError: if they belong to another model.
    """
    folder = pretrained.find_folder(folder)
    config = bert.read_config(folder)
    texts, labels = sentiment.load("movie", "test")
    ids = tokens.encode(tokens.load_tokenizer(folder), texts[:limit])
    return Task(
        name="movie",
        parent=MOVIE,
        noun="sentences",
        model=bert.BertClassifier(config, len(sentiment.CLASSES)),
        base={"bert": pretrained.load(folder, config)},
        batches=tokens.batches(ids, labels[:limit]),
    )


def armenian(*, limit: int | None = None) -> Task:
    """Return the letters of the Armenian script.

    Args:
      limit: The number of pictures of the test part, from the first; all by default.
    """
    config = siglip.read_config(pictures.ENCODER)
    images, labels = digits.load("armenian", "test")
    return Task(
        name="armenian",
        parent=ARMENIAN,
        noun="pictures",
        model=siglip.SiglipClassifier(config, len(digits.CLASSES["armenian"])),
        base={"vision_model": siglip.load(pictures.ENCODER, config, dtype=np.float32)},
        batches=pictures.batches(digits.Images(images[:limit], labels[:limit])),
    )


def accuracy(
    task: Task,
    adapter: para.Checkpoint,
    *,
    like: para.Checkpoint | None = None,
    on_batch: Callable[[int], object] = lambda examples: None,
) -> float:
    """Return the accuracy of the base with `adapter` and its own classifier.

    Args:
      task: The task to evaluate on.
      adapter: A loaded checkpoint.
      like: Its parent: the child is filled up to the parent's shapes, with zeros, and
        no new program is compiled.
      on_batch: Called after each batch with its number of examples.
    """
    params = {**task.base, "classifier": pretrained.classifier(adapter.extra)}
    adapters = adapter.adapters
    if like is not None:
        adapters = para.pad(adapters, like=like.adapters)
    # Checked before the model runs: Linen ignores adapters without a module.
    layers.check(para.to_params(adapters), params)
    lora = task.model.adapted.collection(adapters)
    return evaluate.accuracy(task.model, params, lora, task.batches, on_batch=on_batch)
