"""Folders of models and data sets of the hub."""

import dataclasses
import pathlib

from train.models import repository


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders:
    """Folders to search.

    Attributes:
      weights: A folder of models, see `train.models.repository`; by default that of
        PARA_WEIGHTS, or else the hub.
      data: A folder of data sets, see `train.data.hub`; by default that of PARA_DATA,
        or else the hub.
      subset: Whether fewer examples are meant to be there than the sets have.
    """

    weights: pathlib.Path | None = None
    data: pathlib.Path | None = None
    subset: bool = False

    def model(self, repo: str, sha256: str) -> pathlib.Path:
        """Return the folder of a model.

        Args:
          repo: Its repository on the hub.
          sha256: The hash of its tensors; if empty, it is not checked.

        Raises:
          OSError: if it is not there.
          ValueError: if it has another hash.
        """
        folder = repository.find(repo, weights=self.weights)
        if sha256 and (got := repository.sha256(folder)) != sha256:
            raise ValueError(
                f"The tensors in '{folder}' have the sha256 {got}, expected {sha256}: "
                f"that is another model than {repo} was, or it is damaged."
            )
        return folder


ANYWHERE = Folders()
"""The folders of the environment variables, or else the hub."""
