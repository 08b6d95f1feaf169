"""The words of the command line: which commands there are, and what they take."""

import argparse
import math
import pathlib
import re
from collections.abc import Callable
from typing import NoReturn, get_args

import para_jax as para
from para_jax.formats import PROFILES, Format
from para_jax.formats.engines import ENGINES
from para_jax.layouts import LAYOUTS
from para_jax.names import MODELS

_POLICIES = {
    "gamma": (para.Gamma, "keep this share of all ranks, above 0 and up to 1"),
    "rank": (para.Rank, "keep so many ranks a module, on average"),
    "epsilon": (para.Epsilon, "keep this share of the energy, above 0 and up to 1"),
    "threshold": (para.Threshold, "keep the singular values from this one up"),
    "params": (para.Params, "keep at most so many parameters, such as 100k"),
    "bytes": (para.Bytes, "keep at most so many bytes of factors, such as 1.5MB"),
}
# The library's keyword arguments that are flags here: `head_dim=` is --head-dim.
_KEYWORDS = (
    *("layout", "alpha", "scale", "stack_axis", "adapters_only"),
    *("ecosystem", "head_dim", "layers", "min_rank", "max_rank"),
)
_UNITS = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_EXAMPLES = """examples:
  para inspect adapter/                              what is in it
  para compress adapter/ small/ --gamma 0.25         a quarter of the ranks
  para compress adapter/ small/ --epsilon 0.99 --max-rank 8 --profile padded
  para sweep adapter/ children/ --gamma 0.5 0.25 0.125 --epsilon 0.9
  para compress adapter/ small/ --gamma 0.25 --for vllm --adapters-only
  para convert run/100/ adapter/ --format peft --alpha 16 --model gemma3
"""

Command = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(2, f"{self.prog}: {message}. See {self.prog} --help.\n")


def parser(
    *, compress: Command, inspect: Command, sweep: Command, convert: Command
) -> Parser:
    """Returns the parser; what it gives has the command to call as `run`."""
    result = Parser(
        prog="para",
        description="Compress LoRA adapters after training: PARA, in JAX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"para {para.__version__}"
    result.add_argument("--version", action="version", version=version)
    commands = result.add_subparsers(
        required=True, metavar="COMMAND", parser_class=Parser
    )
    for name, run, words, what, add in (
        (
            "compress",
            compress,
            "SRC DST BUDGET",
            "write one smaller adapter",
            _compress,
        ),
        ("inspect", inspect, "SRC", "show what an adapter holds", _inspect),
        ("sweep", sweep, "SRC DST BUDGETS", "write one adapter a budget", _sweep),
        ("convert", convert, "SRC DST", "write it in another format", _convert),
    ):
        command = commands.add_parser(
            name,
            help=what,
            usage=f"para {name} {words} [options]",
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        _source(command)
        add(command)
        _foreign(command)
    return result


def policies(given: argparse.Namespace) -> list[para.Policy]:
    """Returns the policies that were named, in the order of the help.

    Raises:
      ValueError: if there is none, or one makes no sense.
    """
    names = ("scope", "min_rank", "max_rank", "multiple_of")
    limits = {name: getattr(given, name) for name in names}
    if given.engine and (most := max(ENGINES[given.engine].ranks, default=0)):
        limits["max_rank"] = min(limits["max_rank"] or most, most)
    found: list[para.Policy] = []
    for name, (policy, _) in _POLICIES.items():
        values = getattr(given, name)
        values = values if isinstance(values, list) else [values]
        found += [policy(value, **limits) for value in values if value is not None]
    if not found:
        raise ValueError(f"Name a budget: {', '.join(f'--{x}' for x in _POLICIES)}.")
    return found


def check(given: argparse.Namespace) -> None:
    """Raises ValueError if two words of a command do not go together."""
    words = vars(given)
    if engine := words.get("engine"):
        for name in ("format", "profile"):
            if words[name]:
                raise ValueError(
                    f"--for {engine} decides on format and profile: leave out --{name}."
                )
    for name in ("ecosystem", "head_dim", "layers"):
        if words.get(name) is not None and not words["model"]:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is of a model: give --model, or leave it out.")


def spoken(text: str) -> str:
    """Returns a message of the library in the words of the command line."""
    keyword = re.compile(rf"\b({'|'.join(_KEYWORDS)})=(True\b)?(?=([\w-]|$)?)")

    def flag(match: re.Match[str]) -> str:
        space = "" if match[2] or match[3] is None else " "
        return f"--{match[1].replace('_', '-')}{space}"

    # What is in quotes is the user's, such as the path 'runs/alpha=16'.
    parts = re.split(r"((?<!\w)'[^']*'(?!\w))", text)
    parts[::2] = [keyword.sub(flag, part) for part in parts[::2]]
    text = "".join(parts).replace("overwrite it", "use --overwrite")
    text = text.replace("first: para_jax.names.to_hf", "first, with --model NAME")
    return text.replace("a table of your own", "a .toml file of your own")


def _source(command: Parser) -> None:
    add = command.add_argument
    what = "an adapter: a PEFT folder, an Orbax checkpoint, or a kohya file"
    add("source", metavar="SRC", type=pathlib.Path, help=what)
    what = "leave out all else that is in it: base weights, a trained head"
    add("--adapters-only", action="store_true", help=what)
    add("--debug", action="store_true", help="show the traceback of a failure")


def _foreign(command: Parser) -> None:
    group = command.add_argument_group("an Orbax checkpoint that another program wrote")
    add = group.add_argument
    what = "what wrote it; recognised if left out"
    add("--layout", choices=tuple(LAYOUTS), metavar="NAME", help=f"{what}: %(choices)s")
    add_one = group.add_mutually_exclusive_group().add_argument
    what = "the numerator of the scale alpha / r, where the library has one"
    add_one("--alpha", type=_number, metavar="X", help=what)
    what = "alpha / r itself"
    add_one("--scale", type=_number, metavar="X", help=what)
    what = (
        "the axis that its layers are stacked on, where shapes do not tell: 0, 1, none"
    )
    add("--stack-axis", type=_axis, metavar="AXIS", help=what)


def _output(command: Parser) -> None:
    add = command.add_argument
    add(
        "target",
        metavar="DST",
        type=pathlib.Path,
        help="what to write: a folder; for kohya, FILE.safetensors",
    )
    what = "the format of DST; that of SRC if left out"
    add("--format", choices=get_args(Format), help=what)
    add(
        "--profile",
        choices=PROFILES,
        help="PEFT with each module at its own rank (ragged, if left out), or for "
        "programs that know one rank, one rank a module type, or one alpha",
    )
    what = "what is to serve DST, instead of --format and --profile"
    add(
        "--for",
        dest="engine",
        choices=tuple(ENGINES),
        metavar="ENGINE",
        help=f"{what}: %(choices)s",
    )
    what = "replace the adapter that is at DST"
    add("--overwrite", action="store_true", help=what)
    _names(command)


def _names(command: Parser) -> None:
    add = command.add_argument_group(
        "other names: JAX paths and Hugging Face's"
    ).add_argument
    what = (
        "rename the modules as transformers has them (DST is Orbax: as JAX has them): "
        f"{', '.join(MODELS)}, or a .toml file"
    )
    add("--model", metavar="NAME", help=what)
    what = "whose JAX paths they are, where the paths do not tell"
    add("--ecosystem", metavar="NAME", help=what)
    what = "the size of an attention head, where MaxText's form depends on it"
    add("--head-dim", type=int, metavar="N", help=what)
    what = "how many layers the model has, where their numbers depend on it"
    add("--layers", type=int, metavar="N", help=what)


def _convert(command: Parser) -> None:
    _output(command)
    _json(command)


def _compress(command: Parser) -> None:
    group = command.add_argument_group("budget, one of")
    budget = group.add_mutually_exclusive_group(required=True)
    for name, (_, what) in _POLICIES.items():
        budget.add_argument(f"--{name}", type=_number, metavar="X", help=what)
    _output(command)
    _cut(command)
    add = command.add_argument
    what = "write what was kept, module by module"
    add("--report", type=pathlib.Path, metavar="FILE.json", help=what)
    what = "draw the kept ranks"
    add("--plot", type=pathlib.Path, metavar="FILE.png", help=what)


def _sweep(command: Parser) -> None:
    add = command.add_argument_group("budgets, one or more").add_argument
    for name, (_, what) in _POLICIES.items():
        add(f"--{name}", type=_number, nargs="+", metavar="X", help=what)
    _output(command)
    _cut(command)


def _inspect(command: Parser) -> None:
    _method(command)
    add = command.add_mutually_exclusive_group().add_argument
    what = "show what each serving engine would pay for it"
    add("--engines", action="store_true", help=what)
    what = "draw the singular values"
    add("--plot", type=pathlib.Path, metavar="FILE.png", help=what)


def _method(command: Parser) -> None:
    add = command.add_argument
    what = "how to decompose: QR, Gram products, or what suits this machine"
    add("--method", choices=("auto", "qr", "gram"), default="auto", help=what)
    _json(command)


def _json(command: Parser) -> None:
    what = "print JSON instead of a table"
    command.add_argument("--json", action="store_true", help=what)


def _cut(command: Parser) -> None:
    _method(command)
    add = command.add_argument
    what = "choose among all modules (global, if left out), or in each by itself"
    add("--scope", choices=("global", "local"), default="global", help=what)
    what = "keep so many ranks of every module"
    add("--min-rank", type=int, default=0, metavar="R", help=what)
    add("--max-rank", type=int, metavar="R", help="keep no more of any module")
    what = "make all ranks multiples of Q"
    add("--multiple-of", type=int, default=1, metavar="Q", help=what)
    what = "the dtype of DST; that of SRC if left out"
    add("--dtype", choices=("float32", "bfloat16", "float16"), help=what)


def _axis(text: str) -> int | str:
    if text not in ("0", "1", "none"):
        raise argparse.ArgumentTypeError(f"'{text}' is not 0, 1 or none")
    return text if text == "none" else int(text)


def _number(text: str) -> float:
    """Returns the value of `0.25`, `100k` or `1.5MB`, in powers of 1000."""
    match = re.fullmatch(r"([-+.0-9e]+) *([kKMG]?)B?", text.strip())
    try:
        value = float(match[1]) * _UNITS[match[2]] if match else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a number such as 0.25, 100k or 1.5MB"
        )
    return int(value) if value == int(value) else value
