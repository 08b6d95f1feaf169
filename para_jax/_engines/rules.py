"""What a row of the table of engines says, and what follows from it. Host."""

import dataclasses
from typing import Literal, NamedTuple

from para_jax._engines.profiles import Profile
from para_jax.names.diffusion import Scheme, Target

Format = Literal["peft", "orbax", "kohya", "mlx"]


class Evidence(NamedTuple):
    """How a row is known.

    Attributes:
      how: `run`: the engine loaded our files and its outputs were compared; `in part`:
        its own code that loads adapters was run, and what it loaded compared; `read`.
      version: The release or commit.
      date: When, as year and month.
      source: The files of the engine that decide, or the tests that run it.
    """

    how: Literal["run", "in part", "read"]
    version: str
    date: str
    source: str


class OneFile(NamedTuple):
    """How an engine of PEFT folders reads a single file too.

    Attributes:
      form: The format of the file.
      names: The scheme of the names in it.
      note: How to load it.
    """

    form: Format
    names: Target
    note: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """What an engine takes.

    Attributes:
      form: The format of the file, see `para_jax.save`.
      profile: The form of the ranks and alphas.
      reads: The schemes of names that it finds modules by, see
        `para_jax/names/diffusion/schemes.py`; `jax` are the paths of a JAX tree.
      names: The scheme that other names are converted to, if they are.
      one_file: Its single file, if it reads one besides `form`.
      kinds: The kinds of layers that it serves.
      only: The last names of all modules that it serves; any if empty.
      biases: Whether it adds the bias of an update.
      plain: Whether it refuses, or passes over, tensors that are no factors.
      adds: The ends of names of such tensors that it takes for part of the update.
      skips: The ends of names of such tensors that it rightly passes over.
      ranks: The ranks that its buffers can have; any if empty.
      exact: Whether the file has to have one of these ranks.
      buffers: Whether it holds every module at the rank of its buffers.
      fused: Whether q, k and v, and gate and up, have to be there together.
      whole: Whether a layer has to have all modules of all its experts, or none.
      every: Whether a type of module has to be there in all layers.
      short: Whether it compares `target_modules` of adapters, as names of types.
      unseen: Modules that it leaves out without a word.
      layouts: The layouts whose trees it runs, where its format is a tree.
      known: How the row is known.
      note: What else to know.
    """

    form: Format = "peft"
    profile: Profile = "ragged"
    reads: tuple[Scheme | Literal["jax"], ...] = ("hf",)
    names: Target | None = None
    one_file: OneFile | None = None
    kinds: tuple[str, ...] = ("linear",)
    only: tuple[str, ...] = ()
    biases: bool = False
    plain: bool = True
    adds: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    exact: bool = False
    buffers: bool = False
    fused: bool = False
    whole: bool = False
    every: bool = False
    short: bool = False
    unseen: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    known: Evidence
    note: str = ""


def form(engine: Engine, *, one_file: bool) -> Format:
    """Choose the format of what is written for an engine.

    Args:
      engine: A row of the table.
      one_file: Whether the target is a single file.
    """
    return engine.one_file.form if one_file and engine.one_file else engine.form


def target(engine: Engine, format: Format) -> Target | None:  # noqa: A002
    """Name the scheme that names are converted to, if they are."""
    single = engine.one_file
    return single.names if single and format != engine.form else engine.names


def note(engine: Engine, format: Format) -> str:  # noqa: A002
    """Say how to load what was written."""
    single = engine.one_file
    return single.note if single and format != engine.form else engine.note
