"""One data set: its address and its expected contents. Runs on the host."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple


class Part(NamedTuple):
    """A part of a set: the hub's splits joined by "+", and their number of rows."""

    split: str
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One data set.

    Attributes:
      name: The name in this package.
      hub: The repository on the hub; empty if the set is only on GitHub, see `clones`.
      configs: The repository's configurations that belong to it, joined in this order;
        none where there is only one.
      revision: The branch or commit, if not the newest.
      parts: By our names: "train", "test", ...
      columns: The names of the columns that are read, by ours.
      classes: The number of classes; None for tasks of free text.
      metrics: The reported metrics, the paper's first.
      remark: Licence and oddities.
      size: Bytes to download; None where it is not known.
    """

    name: str
    hub: str
    configs: tuple[str, ...] = ()
    revision: str | None = None
    parts: Mapping[str, Part]
    columns: Mapping[str, str]
    classes: int | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    remark: str = ""
    size: int | None = None
