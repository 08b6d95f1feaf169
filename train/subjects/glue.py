"""Five tasks of GLUE, by RoBERTa-base.

Its head, a dense layer with tanh and a linear classifier, is trained with the adapters.
The official development part is tested on, as in the paper; what chooses the learning
rate is cut from the training part, see `train.data.parts`.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from train import evaluate
from train.data import arrays, glue, parts, tokens
from train.models import roberta
from train.run import Run
from train.subjects.folders import Folders
from train.subjects.subject import Subject

TASKS = glue.TASKS

REPO = "FacebookAI/roberta-base"

PEFT = {
    "base_model_name_or_path": REPO,
    "modules_to_save": ["classifier"],
    "task_type": "SEQ_CLS",
}
"""What an adapter's file says of the model."""


def load(run: Run, folders: Folders) -> Subject:
    """Returns what the run trains on.

    Args:
      run: Its settings.
      folders: Where the encoder and the sentences are.

    Raises:
      OSError: if the encoder or the sentences are not there.
      ValueError: if they are not what they should be, or the encoder is shorter than
        the run's sentences.
    """
    folder = folders.model(REPO, run.backbone)
    config = roberta.read_config(folder)
    longest = config.max_position_embeddings - config.pad_token_id - 1
    if run.max_length > longest:
        raise ValueError(
            f"max_length is {run.max_length}, and the encoder has {longest} positions."
        )
    tokenizer = tokens.load_tokenizer(folder, run.max_length)
    found = {
        part: glue.load(run.task, part, data=folders.data, subset=folders.subset)
        for part in ("train", "test")
    }
    ids = {part: tokens.encode(tokenizer, x.texts) for part, x in found.items()}
    train, validation = (
        ([ids["train"][x] for x in rows], found["train"].labels[rows].tolist())
        for rows in parts.held_out(len(ids["train"]))
    )
    test = ids["test"], found["test"].labels.tolist()
    classes = found["train"].classes
    widths = tuple(run.max_length // x for x in (4, 2, 1))
    return Subject(
        model=roberta.RobertaClassifier(config, len(classes)),
        base=_base(folder),
        data=arrays.Data(
            train=arrays.pack(*train, width=run.max_length, classes=classes),
            examples=len(train[0]),
        ),
        validation=evaluate.Part(tokens.batches(*validation, widths=widths)),
        tests={run.task: evaluate.Part(tokens.batches(*test, widths=widths))},
        peft=PEFT,
    )


@functools.lru_cache(maxsize=1)  # The tasks share it, on the device too.
def _base(folder: pathlib.Path) -> Mapping[str, Any]:
    params = roberta.load(folder, roberta.read_config(folder), dtype=np.float32)
    return cast("dict[str, Any]", jax.tree.map(jnp.asarray, {"roberta": params}))
