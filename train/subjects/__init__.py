"""The tasks to train on, by name."""

import dataclasses
from collections.abc import Callable

from train.models import repository
from train.runs.settings import Run
from train.subjects import glue, images, instructions, pictures, problems, sentences
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
}
"""Loaders of the tasks with model and data on the Hugging Face hub."""

REPOS: dict[str, str] = {
    **dict.fromkeys(images.TASKS, images.REPO),
    **dict.fromkeys(glue.TASKS, glue.REPO),
    **dict.fromkeys(instructions.TASKS, instructions.REPO),
}
"""The repositories of their models."""

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
    """
    if run.backbone or run.task not in (*REPOS, *BACKBONES):
        return run
    if run.task in BACKBONES:
        return dataclasses.replace(run, backbone=BACKBONES[run.task]())
    folder = repository.find(REPOS[run.task], weights=folders.weights)
    return dataclasses.replace(run, backbone=repository.sha256(folder))
