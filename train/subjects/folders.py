"""Folders of models and data sets of the hub."""

import dataclasses
import pathlib


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


ANYWHERE = Folders()
"""The folders of the environment variables, or else the hub."""
