"""The model of a task: its own, or another that the run names."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Generic, TypeVar

from train.models import folder_config, repository
from train.runs.settings import Run
from train.subjects.folders import Folders

F = TypeVar("F")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found(Generic[F]):
    """A model on disk.

    Attributes:
      repo: Its repository on the hub.
      folder: The folder with its files.
      family: What reads and runs it.
    """

    repo: str
    folder: pathlib.Path
    family: F


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Generic[F]):
    """The models of which a task takes one.

    Attributes:
      own: The repository of the task's own.
      families: What reads and runs a model, by the `model_type` of its folder.
    """

    own: str
    families: Mapping[str, F]

    def find(self, run: Run, folders: Folders) -> Found[F]:
        """Find the model of a run.

        Args:
          run: The run's settings; without a `model`, it is the task's own. The hash
            `backbone` is checked unless it is empty.
          folders: The folders of models.

        Raises:
          OSError: if it is not there.
          ValueError: if the task cannot take it, or its hash is another.
        """
        repo = run.model or self.own
        folder = repository.find(repo, weights=folders.weights)
        # Before the hash, which takes a while.
        if (kind := folder_config.model_type(folder)) not in self.families:
            raise ValueError(
                f"The model in '{folder}' is of the type '{kind}', and the task "
                f"'{run.task}' takes {' or '.join(self.families)}. Give another "
                f"--model, or none, for {self.own}."
            )
        if run.backbone and (got := repository.sha256(folder)) != run.backbone:
            raise ValueError(
                f"The tensors in '{folder}' have the sha256 {got}, expected "
                f"{run.backbone}: that is another model than {repo} was, or it is "
                "damaged."
            )
        return Found(repo=repo, folder=folder, family=self.families[kind])
