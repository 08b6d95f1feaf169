"""The fields of a row of the table of engines, and the rules on them."""

import dataclasses
from typing import Literal, NamedTuple

from para_jax._adapters.choices import Format as Format, Profile
from para_jax.names.diffusion import Scheme, Target


class Evidence(NamedTuple):
    """The source of a row.

    Attributes:
      how: `run`: the engine loaded our files and its outputs were compared; `in part`:
        only its code for loading adapters was run, and the loaded arrays compared;
        `read`: its sources were read.
      version: The release or commit.
      date: When, as year and month.
      source: The files of the engine that decide, or the tests that run it.
    """

    how: Literal["run", "in part", "read"]
    version: str
    date: str
    source: str


class OneFile(NamedTuple):
    """A single file for an engine of PEFT folders.

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
    """The requirements of a serving engine.

    Attributes:
      form: The format of the file, see `para_jax.save`.
      profile: The form of the ranks and alphas.
      reads: The schemes of names that it finds modules by, see
        `para_jax/names/diffusion/schemes.py`; `jax` are the paths of a JAX tree.
      names: The scheme to convert other names to, if any.
      one_file: Its single file, if it reads one besides `form`.
      kinds: The kinds of layers that it serves.
      only: The last names of all modules that it serves; any if empty.
      biases: Whether it adds the bias of an update.
      replicates: Whether it repeats the base's layers as `layer_replication` says.
      plain: Whether it refuses or ignores tensors other than factors.
      adds: The ends of names of other tensors that it adds as part of the update.
      heads: The modules that it serves whole, if `modules_to_save` names them.
      skips: The ends of names of other tensors that it rightly ignores.
      ranks: The possible ranks of its buffers; any if empty.
      exact: Whether the file must have one of these ranks.
      buffers: Whether it holds every module at the rank of its buffers.
      fused: Whether q, k and v, and gate and up, must be present together.
      whole: Whether a layer must have all modules of all its experts, or none.
      paired: Whether fused experts must have both of their parameters, or none.
      every: Whether a type of module must be present in all layers.
      short: Whether it compares `target_modules` of adapters, as names of types.
      unseen: Modules that it ignores silently.
      layouts: The layouts of the trees that it runs, if its format is a tree.
      known: The source of the row.
      note: Instructions for loading the file.
    """

    form: Format = "peft"
    profile: Profile = "ragged"
    reads: tuple[Scheme | Literal["jax"], ...] = ("hf",)
    names: Target | None = None
    one_file: OneFile | None = None
    kinds: tuple[str, ...] = ("linear",)
    only: tuple[str, ...] = ()
    biases: bool = False
    replicates: bool = False
    plain: bool = True
    adds: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    exact: bool = False
    buffers: bool = False
    fused: bool = False
    whole: bool = False
    paired: bool = False
    every: bool = False
    short: bool = False
    unseen: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    known: Evidence
    note: str = ""


def form(engine: Engine, *, one_file: bool) -> Format:
    """Choose the format of the file for an engine.

    Args:
      engine: A row of the table.
      one_file: Whether the target is a single file.
    """
    return engine.one_file.form if one_file and engine.one_file else engine.form


def target(engine: Engine, format: Format) -> Target | None:  # noqa: A002
    """Return the scheme to convert names to, or None to keep them."""
    # Names in a single file may differ from those in the engine's own format.
    single = engine.one_file
    return single.names if single and format != engine.form else engine.names


def note(engine: Engine, format: Format) -> str:  # noqa: A002
    """Return the instructions for loading the file."""
    single = engine.one_file
    return single.note if single and format != engine.form else engine.note
