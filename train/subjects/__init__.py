"""The tasks to train on, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from train.models import repository
from train.runs.settings import Run
from train.subjects import (
    glue,
    images,
    instructions,
    multiple_choice,
    pictures,
    problems,
    sentences,
)
from train.subjects.choice import Choice
from train.subjects.folders import ANYWHERE as ANYWHERE, Folders as Folders
from train.subjects.subject import Subject as Subject

LOADERS: dict[str, Callable[[Run], Subject]] = {
    **dict.fromkeys(sentences.TASKS, sentences.load),
    **dict.fromkeys(pictures.TASKS, pictures.load),
    **dict.fromkeys(problems.TASKS, problems.load),
}
"""Loaders of the tasks that ship or have a package, by task."""

HUB: dict[str, Callable[[Run, Folders], Subject]] = {
    **dict.fromkeys(images.TASKS, images.load),
    **dict.fromkeys(glue.TASKS, glue.load),
    **dict.fromkeys(instructions.TASKS, instructions.load),
    **dict.fromkeys(multiple_choice.TASKS, multiple_choice.load),
}
"""Loaders of the tasks with model and data on the Hugging Face hub."""

CHOICES: dict[str, Choice[Any]] = {
    **dict.fromkeys(images.TASKS, images.CHOICE),
    **dict.fromkeys(glue.TASKS, glue.CHOICE),
    **dict.fromkeys(instructions.TASKS, instructions.CHOICE),
    **dict.fromkeys(multiple_choice.TASKS, multiple_choice.CHOICE),
}
"""The models of which they take one."""

BACKBONES: dict[str, Callable[[], str]] = {
    **dict.fromkeys(pictures.TASKS, pictures.backbone),
    **dict.fromkeys(problems.TASKS, problems.backbone),
}
"""The hash of the backbone pretrained here, by task."""


def load(run: Run, folders: Folders = ANYWHERE) -> Subject:
    """Load the subject of a run.

    Args:
      run: The run's settings.
      folders: The folders of models and data sets of the hub.

    Raises:
      OSError: if a pretrained model or a data set is not there.
      ValueError: if it is another one, or there is no such task.
    """
    check_model(run)
    if run.task in HUB:
        return HUB[run.task](run, folders)
    if run.task not in LOADERS:
        known = ", ".join([*LOADERS, *HUB])
        raise ValueError(f"Unknown task '{run.task}', expected {known}.")
    return LOADERS[run.task](run)


def identified(run: Run, folders: Folders = ANYWHERE) -> Run:
    """Return the run with the hash of the present backbone, if it names none.

    A resumed run then continues with the same backbone only.

    Raises:
      OSError: if the model is not there.
      ValueError: if the task cannot take it.
    """
    check_model(run)
    choice = CHOICES.get(run.task)
    if choice and run.model == choice.own:
        # With or without its name, it is the same run.
        run = dataclasses.replace(run, model="")
    if run.backbone or (choice is None and run.task not in BACKBONES):
        return run
    if choice is None:
        return dataclasses.replace(run, backbone=BACKBONES[run.task]())
    folder = choice.find(run, folders).folder
    return dataclasses.replace(run, backbone=repository.sha256(folder))


def check_model(run: Run) -> None:
    """Check that the run's task can take another model, if it names one.

    Raises:
      ValueError: if it cannot.
    """
    if run.model and run.task not in CHOICES:
        raise ValueError(
            f"The task '{run.task}' has a model of its own, and model is "
            f"'{run.model}'. Leave --model out, or choose one of the tasks that take "
            f"another: {', '.join(CHOICES)}."
        )
