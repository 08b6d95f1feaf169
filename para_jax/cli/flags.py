"""The options of several commands: SRC and DST, how to cut, how to print."""

import argparse
import math
import pathlib
import re
from typing import NoReturn, get_args

from para_jax._adapters.choices import PROFILES, SCORES, Format, Method
from para_jax.cli.words import ENGINES, LAYOUTS, MODELS

_DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
_UNITS = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


class Parser(argparse.ArgumentParser):
    """A parser with errors of one sentence instead of the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the error and end the program with status 2."""
        self.exit(2, f"{self.prog}: {message}. See {self.prog} --help.\n")


def source(command: Parser) -> None:
    """Add SRC, one adapter."""
    add = command.add_argument
    what = (
        "an adapter: a PEFT or mlx-lm folder, Orbax checkpoint, .safetensors or "
        ".lora.h5 file"
    )
    add("source", metavar="SRC", type=pathlib.Path, help=what)
    _whole(command)


def sources(command: Parser) -> None:
    """Add SRC, patterns of many adapters."""
    what = (
        "a quoted pattern that matches the adapters: 'tenants/*/adapter'. Each child "
        "is written below DST, by its path under the fixed part ('tenants')"
    )
    command.add_argument("source", metavar="SRC", nargs="+", help=what)
    _whole(command)


def _whole(command: Parser) -> None:
    add = command.add_argument
    what = "read the adapters only: leave out base weights and trained heads"
    add("--adapters-only", action="store_true", help=what)
    add("--debug", action="store_true", help="show the traceback of a failure")


def foreign(command: Parser) -> None:
    """Add the facts missing from a tree of arrays or a file without alphas."""
    group = command.add_argument_group("facts that SRC does not record")
    add = group.add_argument
    what = "the library that wrote the tree; recognised by default"
    add("--layout", choices=LAYOUTS, metavar="NAME", help=f"{what}: %(choices)s")
    add_one = group.add_mutually_exclusive_group().add_argument
    # One fixes the other at a known rank: both could only contradict each other.
    what = "alpha, the numerator of the scale alpha / r"
    add_one("--alpha", type=number, metavar="X", help=what)
    what = "the scale alpha / r, instead of --alpha"
    add_one("--scale", type=number, metavar="X", help=what)
    what = "the axis along which layers are stacked: 0, 1 or none"
    add("--stack-axis", type=_axis, metavar="AXIS", help=what)


def output(
    command: Parser,
    *,
    target: str = "the folder to write; for kohya, FILE.safetensors; for keras, "
    "FILE.lora.h5",
    overwrite: str = "replace an existing adapter at DST",
) -> None:
    """Add DST, its form and its names, in the words of one command."""
    add = command.add_argument
    add("target", metavar="DST", type=pathlib.Path, help=target)
    what = "the format of DST; SRC's by default"
    add("--format", choices=get_args(Format), help=what)
    add(
        "--profile",
        choices=PROFILES,
        help="the form of a PEFT folder: ragged (each module at its own rank, the "
        "default), or one rank for all modules, for each module type, or one alpha",
    )
    what = "the engine that will serve DST, instead of --format and --profile"
    add(
        "--for",
        dest="engine",
        choices=ENGINES,
        metavar="ENGINE",
        help=f"{what}: %(choices)s",
    )
    add("--overwrite", action="store_true", help=overwrite)
    _names(command)


def _names(command: Parser) -> None:
    add = command.add_argument_group(
        "renaming between JAX paths and Hugging Face's names"
    ).add_argument
    what = (
        "rename modules to transformers' names (to JAX paths if DST is Orbax or "
        "keras): "
        f"{', '.join(MODELS)}, or a .toml file. Or from the names of an older "
        "transformers to those of the installed one: the base model's folder or "
        "config.json"
    )
    add("--model", metavar="NAME", help=what)
    what = "the library whose JAX paths they are, if ambiguous"
    add("--ecosystem", metavar="NAME", help=what)
    what = "the size of an attention head, if shapes of MaxText or Keras need it"
    add("--head-dim", type=int, metavar="N", help=what)
    what = "the number of layers of the model, if numbering needs it"
    add("--layers", type=int, metavar="N", help=what)


def method(command: Parser) -> None:
    """Add the way to decompose, and JSON."""
    add = command.add_argument
    what = "decompose by QR, by Gram products, or choose by device"
    add("--method", choices=get_args(Method), default="auto", help=what)
    json(command)


def json(command: Parser) -> None:
    """Add the choice of JSON."""
    what = "print JSON instead of a table"
    command.add_argument("--json", action="store_true", help=what)


def cut(command: Parser) -> None:
    """Add the way to decompose, the limits of ranks, the dtype, and JSON."""
    method(command)
    add = command.add_argument
    what = "compare all modules (global, the default), or each by itself"
    add("--scope", choices=("global", "local"), default="global", help=what)
    what = (
        "compare components of different modules by their singular values (sigma, the "
        "paper's and the default), or by their share of their own module's update"
    )
    add_one = command.add_mutually_exclusive_group().add_argument
    add_one("--score", choices=SCORES, default="sigma", help=what)
    what = (
        "compare them relative to the kernels of the base model, whose folder with "
        "safetensors is DIR"
    )
    add_one("--base", type=pathlib.Path, metavar="DIR", help=what)
    what = "keep at least this many ranks of every module"
    add("--min-rank", type=int, default=0, metavar="R", help=what)
    what = "keep at most this many ranks of any module"
    add("--max-rank", type=int, metavar="R", help=what)
    what = "round ranks to multiples of Q"
    add("--multiple-of", type=int, default=1, metavar="Q", help=what)
    what = "the dtype of DST; SRC's by default"
    add("--dtype", choices=_DTYPES, help=what)


def count(text: str) -> int:
    """Parse a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 up")
    return int(text)


def number(text: str) -> float:
    """Parse a number such as `0.25`, `100k` or `1.5MB`, in powers of 1000."""
    match = re.fullmatch(r"([-+.0-9e]+) *([kKMG]?)B?", text.strip())
    try:
        value = float(match[1]) * _UNITS[match[2]] if match else math.nan
    except ValueError:
        value = math.nan
    # `float` also takes 1e999, which is infinite.
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a number such as 0.25, 100k or 1.5MB"
        )
    # Counts stay whole: `rank 4` names a child, and a manifest's 4 is not 4.0.
    return int(value) if value == int(value) else value


def _axis(text: str) -> int | str:
    if text not in ("0", "1", "none"):
        raise argparse.ArgumentTypeError(f"'{text}' is not 0, 1 or none")
    return text if text == "none" else int(text)
