"""Parser of the words after `python -m train run`, with one-sentence errors.

tyro reads the values; its complaints, which are boxes, become sentences here.
"""

import contextlib
import dataclasses
import difflib
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import tyro

from train.methods import METHODS
from train.posthoc.cuts import CUTS, Cut
from train.presets import PRESETS
from train.runs import fit
from train.runs.settings import Run
from train.subjects import Folders

PROG = "python -m train run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """The request of one `run` command.

    Attributes:
      preset: The preset's name.
      name: The method's name.
      run: The settings, including the method's.
      cut: The cut of the trained parent, if there is one.
      out: The run's folder, if not the default.
      folders: The folders of models and data sets of the hub. They are not settings
        of the run: its backbone has a hash.
      checkpoint_every: Steps between two checkpoints.
    """

    preset: str
    name: str
    run: Run
    cut: Cut | None
    out: pathlib.Path | None
    folders: Folders
    checkpoint_every: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """Train adapters on a task.

    Attributes:
      run: The settings that determine the numbers.
      method: The training method; --method NAME picks another.
      out: The run's folder, by default one in runs/.
      weights: A folder of models, instead of the hub.
      data: A folder of data sets, instead of the hub.
      checkpoint_every: Steps between two checkpoints.
    """

    run: tyro.conf.OmitArgPrefixes[Run]
    method: Any
    out: pathlib.Path | None = None
    weights: pathlib.Path | None = None
    data: pathlib.Path | None = None
    checkpoint_every: int = fit.EVERY


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CutSettings(_Settings):
    """Train a parent on a task, and cut smaller adapters from it.

    Attributes:
      cut: The cut of the trained parent.
    """

    cut: Any


def parse(words: Sequence[str]) -> Words:
    """Parse the words of a `run` command.

    Raises:
      SystemExit: after printing the help.
      ValueError: if they make no sense.
    """
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        raise SystemExit(0)
    preset = known("preset", words[0], PRESETS)
    name, rest = _taken(words[1:], "--method", "lora")
    name = known("method", name, [*METHODS, *CUTS])
    # A cut is made from a parent that LoRA trains.
    method = METHODS["lora" if name in CUTS else name]
    default = _Settings(run=PRESETS[preset], method=method)
    if name in CUTS:
        default = _CutSettings(run=PRESETS[preset], method=method, cut=CUTS[name])
    found = _parsed(rest, default, f"{PROG} {preset} --method {name}")
    cut = found.cut if isinstance(found, _CutSettings) else None
    if found.checkpoint_every < 1:
        raise ValueError(
            f"--checkpoint-every is {found.checkpoint_every}, expected at least 1."
        )
    if cut is not None and not cut.names():
        raise ValueError("Nothing is to be cut: give one of the options --cut.")
    return Words(
        preset=preset,
        name=name,
        run=dataclasses.replace(found.run, method=found.method),
        cut=cut,
        out=found.out,
        folders=Folders(weights=found.weights, data=found.data),
        checkpoint_every=found.checkpoint_every,
    )


def known(what: str, got: str, names: Iterable[str]) -> str:
    """Return `got` if it is one of `names`.

    Raises:
      ValueError: if it is not; the message lists the names, and the likely one.
    """
    names = list(names)
    if got in names:
        return got
    # One suggestion: the full list follows anyway.
    close = difflib.get_close_matches(got, names, n=1)
    meant = f" Did you mean '{close[0]}'?" if close else ""
    raise ValueError(f"Unknown {what} '{got}'.{meant} There are: {', '.join(names)}.")


def _taken(words: Sequence[str], flag: str, default: str) -> tuple[str, list[str]]:
    """Return the value of `--flag VALUE` or `--flag=VALUE`, and the other words."""
    # By hand: the method decides which options tyro knows.
    rest, words = [], list(words)
    value = default
    while words:
        word = words.pop(0)
        if word == flag:
            if not words:
                raise ValueError(f"{flag} wants a name after it.")
            value = words.pop(0)
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
        else:
            rest.append(word)
    return value, rest


def _parsed(words: Sequence[str], default: _Settings, prog: str) -> _Settings:
    # One seed or many are the same to all that follows.
    words = [x.replace("--seed", "--seeds", 1) if _is_seed(x) else x for x in words]
    said = io.StringIO()
    try:
        # tyro prints its errors in a box; here one sentence goes to the user.
        with contextlib.redirect_stderr(said):
            found, unknown = tyro.cli(
                type(default),
                args=words,
                default=default,
                prog=prog,
                config=(tyro.conf.SuppressFixed,),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        # The status of --help is 0.
        if not stop.code:  # After --help.
            raise
        raise ValueError(_sentence(said.getvalue())) from None
    if unknown:
        names = ", ".join(_overrides(default))
        option = unknown[0].partition("=")[0]
        close = difflib.get_close_matches(option, _overrides(default), n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"Unknown option '{option}'.{meant} There are: {names}.")
    return found


def _is_seed(word: str) -> bool:
    return word == "--seed" or word.startswith("--seed=")


def _overrides(settings: _Settings) -> list[str]:
    """Return all options, as written."""
    parts: dict[str, Any] = {"": settings.run, "method.": settings.method}
    if isinstance(settings, _CutSettings):
        parts["cut."] = settings.cut
    names = [
        f"--{prefix}{field.name.replace('_', '-')}"
        for prefix, part in parts.items()
        for field in dataclasses.fields(part)
    ]
    others = (f"--{x}" for x in ("seed", "out", "weights", "data", "checkpoint-every"))
    return [*names, *others]


def _sentence(box: str) -> str:
    """Return tyro's error message without its box and advice."""
    # Sides and rules are of other characters where the output is not in UTF-8. Below
    # the title there is one rule or none, and what follows another repeats the help.
    rows = [row.strip("│ ") for row in box.splitlines()[1:]]
    rules = [not row.strip("─-") for row in rows]
    first = rules.index(False)
    lines = rows[first : rules.index(True, first)]
    return f"{' '.join(lines).rstrip('.')}."


def _help() -> str:
    methods = ", ".join([*METHODS, *CUTS])
    return (
        f"usage: {PROG} PRESET [--method NAME] [--seed N] [overrides] [--out DIR]\n\n"
        f"presets: {', '.join(PRESETS)}\nmethods: {methods}\n\n"
        f"{PROG} PRESET --method NAME --help lists the overrides."
    )
