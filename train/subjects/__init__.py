"""The tasks that runs train on, by their names."""

from collections.abc import Callable

from train.run import Run
from train.subjects import pictures, problems, sentences
from train.subjects.subject import Subject as Subject

LOADERS: dict[str, Callable[[Run], Subject]] = {
    **dict.fromkeys(sentences.TASKS, sentences.load),
    **dict.fromkeys(pictures.TASKS, pictures.load),
    **dict.fromkeys(problems.TASKS, problems.load),
}
"""What returns the subject of a run, by its task."""


def load(run: Run) -> Subject:
    """Returns what the run trains on.

    Raises:
      FileNotFoundError: if a pretrained model is not there.
      ValueError: if it is another one, or there is no such task.
    """
    if run.task not in LOADERS:
        raise ValueError(f"Unknown task '{run.task}', expected {', '.join(LOADERS)}.")
    return LOADERS[run.task](run)
