"""The record of a format: its files, and the functions behind `load` and `save`."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from para_jax._adapters.checkpoint import Checkpoint
from para_jax._engines.profiles import Profile
from para_jax._engines.rules import Format
from para_jax.layouts import StackAxis


class Hints(NamedTuple):
    """Facts supplied by the user, about a checkpoint without them.

    Attributes:
      layout: The library that wrote the tree, as for `para_jax.from_tree`.
      alpha: The numerator of the scale: one for all modules, or one a module by path.
      scale: `alpha / r` itself.
      stack_axis: The axis along which layers are stacked.
      adapters_only: Whether to leave everything unread but the adapters.
    """

    layout: str | None = None
    alpha: float | Mapping[str, float] | None = None
    scale: float | None = None
    stack_axis: StackAxis | None = None
    adapters_only: bool = False


Replacing = Callable[..., contextlib.AbstractContextManager[pathlib.Path]]
"""Takes a target and `overwrite=`; yields where to write it, as `atomic.replacing`."""

Verify = Callable[[pathlib.Path, Checkpoint, Checkpoint, Profile], None]
"""Takes a path, the result of `save`, the checkpoint to save, and the profile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFormat:
    """A way to keep adapters on disk.

    The functions import the code of their format when they are called, because Orbax
    alone takes longer to import than a small adapter takes to compress.

    Attributes:
      name: The format's key in `FORMATS`.
      load: Read a folder or file.
      save: Write into an empty folder, or to a new file; return the checkpoint that
        the files should read back as.
      read_back: Load a file again, given the result of `save`, whose arrays it shares.
      replacing: The context that puts a new target in the place of an old one.
      suffixes: The endings of a single file, the one to write first; none for a folder.
      marks: Paths in a folder, any of which tells that it has this format.
      weights: The file of weights that may be named instead of its folder.
      beside: The file that `weights` needs beside it to stand for the folder.
      remains: What the names of files begin with if a folder of this format lacks its
        weights.
      hints: The fields of `Hints` that `load` accepts, beside `adapters_only`.
      profiles: The forms of ranks and alphas that `save` can write.
      is_divided: Whether each process writes its own part of the arrays.
      reader: The library that would ignore other parts of an update than factors, if
        one would.
      check: Raise ValueError if the format cannot hold a checkpoint.
      check_place: Raise ValueError if files beside a target would change its meaning.
      verify: Raise ValueError unless the format's engines compute the updates from the
        raw files; None where no engine reads them and scales are not folded.
      warn: Warn of modules, by path, that the format's own library reads otherwise.
    """

    name: Format
    load: Callable[[pathlib.Path, Hints], Checkpoint]
    save: Callable[[Checkpoint, pathlib.Path, Profile], Checkpoint]
    read_back: Callable[[pathlib.Path, Checkpoint], Checkpoint]
    replacing: Replacing
    # The defaults suit a folder without rules of its own.
    suffixes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    weights: str = ""
    beside: str = ""
    remains: str = ""
    hints: Collection[str] = ()
    profiles: tuple[Profile, ...] = ("ragged",)
    is_divided: bool = False
    reader: str = ""
    check: Callable[[Checkpoint], None] = lambda checkpoint: None
    check_place: Callable[[pathlib.Path, Checkpoint], None] = lambda target, new: None
    verify: Verify | None = None
    warn: Callable[[Iterable[str]], None] = lambda paths: None

    @property
    def one_file(self) -> bool:
        """Whether it is a single file, not a folder."""
        return bool(self.suffixes)

    @property
    def suffix(self) -> str:
        """The ending of a single file to write; empty for a folder."""
        return self.suffixes[0] if self.suffixes else ""
