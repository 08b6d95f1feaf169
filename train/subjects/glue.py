"""Five tasks of GLUE, by RoBERTa-base, or by another RoBERTa or MPNet.

Its head, a dense layer with tanh and a linear classifier, is trained with the adapters.
The official development part is the test, as in the paper; the validation part is cut
from the training part, see `train.data.parts`. GLUE's own metrics of CoLA and MRPC, and
the second development part of MNLI, are reported beside the accuracy.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from train.data import arrays, glue, parts, tokens
from train.data.batch import Batch
from train.evaluation import evaluate, predict
from train.models import folder_config, mpnet, roberta
from train.models.adapted import Model
from train.runs.settings import Run
from train.subjects.choice import Choice
from train.subjects.folders import Folders
from train.subjects.subject import Subject

TASKS = glue.NAMES

REPO = "FacebookAI/roberta-base"


class Family(NamedTuple):
    """Encoders of one architecture.

    Attributes:
      classifier: Makes a classifier of a configuration and a number of classes.
      read_config: Reads the configuration in a folder.
      load: Loads the encoder's params in a folder, by a configuration and `dtype`.
    """

    classifier: Callable[[Any, int], Model]
    read_config: Callable[[pathlib.Path], roberta.Shape]
    load: Callable[..., dict[str, Any]]


CHOICE = Choice(
    own=REPO,
    families={
        "roberta": Family(roberta.RobertaClassifier, roberta.read_config, roberta.load),
        "mpnet": Family(mpnet.MPNetClassifier, mpnet.read_config, mpnet.load),
    },
)
"""The models; a family's name is that of the encoder in its classifier too."""


def load(run: Run, folders: Folders) -> Subject:
    """Load the subject of a run.

    Args:
      run: The run's settings.
      folders: The folders of the encoder and the sentences.

    Raises:
      OSError: if the encoder or the sentences are not there.
      ValueError: if they are not what they should be, or the encoder is shorter than
        the run's sentences.
    """
    model = CHOICE.find(run, folders)
    config = model.family.read_config(model.folder)
    if run.max_length > config.longest:
        raise ValueError(
            f"max_length is {run.max_length}, and the encoder has {config.longest} "
            "positions."
        )
    tokenizer = tokens.load_tokenizer(model.folder, run.max_length)
    found = {
        part: glue.load(run.task, part, data=folders.data, subset=folders.subset)
        for part in glue.parts(run.task)
    }
    classes = found["train"].classes
    ids = {part: tokens.encode(tokenizer, x.texts) for part, x in found.items()}
    # The official development part is the test; validation is cut from training.
    train, validation = (
        ([ids["train"][x] for x in rows], found["train"].labels[rows].tolist())
        for rows in parts.held_out(len(ids["train"]))
    )
    # Three widths: fewer programs than `tokens.WIDTHS`, at more padding.
    widths = tuple(run.max_length // x for x in (4, 2, 1))
    test = {
        part: tokens.batches(ids[part], x.labels.tolist(), widths=widths)
        for part, x in found.items()
        if part != "train"
    }
    return Subject(
        model=model.family.classifier(config, len(classes)),
        base=_base(model.folder),
        data=arrays.Data(
            train=arrays.pack(*train, width=run.max_length, classes=classes),
            examples=len(train[0]),
        ),
        validation=evaluate.Part(tokens.batches(*validation, widths=widths)),
        tests={run.task: evaluate.Part(test["test"])},
        peft={
            "base_model_name_or_path": model.repo,
            "modules_to_save": ["classifier"],
            "task_type": "SEQ_CLS",
        },
        measures=_measures(run.task, test),
    )


def _measures(
    task: str, test: Mapping[str, Sequence[Batch]]
) -> dict[str, evaluate.Part]:
    """Return the further scores of the test part, and the further parts to test on."""
    scores = {
        name: evaluate.Part(test["test"], predict.scored(score))
        for name, score in glue.scores(task).items()
    }
    others = {part: evaluate.Part(x) for part, x in test.items() if part != "test"}
    return scores | others


@functools.lru_cache(maxsize=1)  # The tasks share it, on the device too.
def _base(folder: pathlib.Path) -> Mapping[str, Any]:
    name = folder_config.model_type(folder)
    family = CHOICE.families[name]
    params = family.load(folder, family.read_config(folder), dtype=np.float32)
    return cast("dict[str, Any]", jax.tree.map(jnp.asarray, {name: params}))
