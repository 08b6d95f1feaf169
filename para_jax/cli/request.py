"""Requests: the words of a command, as the parser has read them.

The parser makes a request once; `dataclasses.replace` makes those of children. It holds
plain values, so it can be pickled and sent to other processes. `conflicts.py` checks
that its words agree with each other, the commands that they agree with the files.
"""

import dataclasses
import pathlib
from typing import Literal

from para_jax._adapters.choices import Format, Method, Profile, ScoreName, StackAxis


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """Facts about SRC beyond its files, and whether to read adapters only."""

    adapters_only: bool = False
    layout: str | None = None
    alpha: float | None = None
    scale: float | None = None
    stack_axis: StackAxis | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rename:
    """The model to name modules after, and the facts its names depend on."""

    model: str | None = None
    ecosystem: str | None = None
    head_dim: int | None = None
    layers: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """The form of DST. An engine decides on format and profile."""

    format: Format | None = None
    profile: Profile | None = None
    engine: str | None = None
    overwrite: bool = False
    rename: Rename = Rename()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """The budgets, the limits of ranks, the way to decompose and the dtype of DST.

    Attributes:
      budgets: The name of a policy's flag and its value, in the order of the help.
      base: The folder of the base model, if scores are relative to its kernels.
    """

    budgets: tuple[tuple[str, float], ...]
    method: Method = "auto"
    scope: Literal["global", "local"] = "global"
    score: ScoreName = "sigma"
    base: pathlib.Path | None = None
    min_rank: int = 0
    max_rank: int | None = None
    multiple_of: int = 1
    dtype: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The words of every command."""

    debug: bool = False
    json: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """`para inspect SRC`."""

    source: pathlib.Path
    hints: Hints = Hints()
    method: Method = "auto"
    engines: bool = False
    plot: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion(Command):
    """One adapter from SRC to DST, in the form of an output."""

    source: pathlib.Path
    target: pathlib.Path
    hints: Hints = Hints()
    output: Output = Output()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(Conversion):
    """`para convert SRC DST`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compress(Conversion):
    """`para compress SRC DST BUDGET`."""

    cut: Cut
    report: pathlib.Path | None = None
    plot: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Conversion):
    """`para sweep SRC DST BUDGETS`. DST is the folder of the children."""

    cut: Cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fleet(Command):
    """`para fleet SRC DST BUDGET`. SRC are patterns, DST the folder of the children.

    Attributes:
      jobs: How many tenants are in flight at once.
      ray: The address of a cluster, "" to let Ray find one, None for this
        machine alone.
    """

    patterns: tuple[str, ...]
    target: pathlib.Path
    hints: Hints = Hints()
    output: Output = Output()
    cut: Cut
    jobs: int | None = None
    ray: str | None = None

    def tenant(self, source: pathlib.Path, target: pathlib.Path) -> Compress:
        """Make the request for one tenant; it replaces the child of an earlier run."""
        # A child without a row in the manifest is from a run that was killed.
        output = dataclasses.replace(self.output, overwrite=True)
        return Compress(
            source=source, target=target, hints=self.hints, output=output, cut=self.cut
        )

    def recipe(self) -> dict[str, str | int | float | bool]:
        """Collect the words behind each child: equal recipes make equal children.

        Manifests on disk hold them as JSON, under these names and in this order.
        """
        # Not `asdict` of it all: a new field would refuse every fleet begun before.
        output, cut, hints = self.output, self.cut, self.hints
        words = {
            "adapters_only": hints.adapters_only,
            **dict(cut.budgets),
            "format": output.format,
            "profile": output.profile,
            "engine": output.engine,
            **dataclasses.asdict(output.rename),
            "method": cut.method,
            "scope": cut.scope,
            # Left out where it is the default, as in manifests from before scores.
            "score": None if cut.score == "sigma" else cut.score,
            "base": None if cut.base is None else str(cut.base),
            "min_rank": cut.min_rank,
            "max_rank": cut.max_rank,
            "multiple_of": cut.multiple_of,
            "dtype": cut.dtype,
            "layout": hints.layout,
            "alpha": hints.alpha,
            "scale": hints.scale,
            "stack_axis": hints.stack_axis,
        }
        # JSON's null would differ from a word that older manifests do not have.
        return {name: value for name, value in words.items() if value is not None}


Request = Compress | Inspect | Sweep | Fleet | Convert
