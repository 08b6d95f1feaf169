"""The words of the command line: which commands there are, and what they take."""

import argparse
import pathlib
from collections.abc import Callable

import para_jax as para
from para_jax._engines.registry import ENGINES
from para_jax.cli import flags

_POLICIES = {
    "gamma": (para.Gamma, "keep this share of all ranks, above 0 and up to 1"),
    "rank": (para.Rank, "keep so many ranks a module, on average"),
    "epsilon": (para.Epsilon, "keep this share of the energy, above 0 and up to 1"),
    "threshold": (para.Threshold, "keep the singular values from this one up"),
    "params": (para.Params, "keep at most so many parameters, such as 100k"),
    "bytes": (para.Bytes, "keep at most so many bytes of factors, such as 1.5MB"),
}
_EXAMPLES = """examples:
  para inspect adapter/                              what is in it
  para compress adapter/ small/ --gamma 0.25         a quarter of the ranks
  para compress adapter/ small/ --epsilon 0.99 --max-rank 8 --profile padded
  para sweep adapter/ children/ --gamma 0.5 0.25 0.125 --epsilon 0.9
  para compress adapter/ small/ --gamma 0.25 --for vllm --adapters-only
  para fleet 'tenants/*/adapter' fleet/ --gamma 0.25  one child a tenant
  para convert run/100/ adapter/ --format peft --alpha 16 --model gemma3
"""

Command = Callable[[argparse.Namespace], int | None]


def parser(
    *,
    compress: Command,
    inspect: Command,
    sweep: Command,
    fleet: Command,
    convert: Command,
) -> flags.Parser:
    """Returns the parser; what it gives has the command to call as `run`."""
    result = flags.Parser(
        prog="para",
        description="Compress LoRA adapters after training: PARA, in JAX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"para {para.__version__}"
    result.add_argument("--version", action="version", version=version)
    commands = result.add_subparsers(
        required=True, metavar="COMMAND", parser_class=flags.Parser
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
        ("fleet", fleet, "SRC DST BUDGET", "compress many adapters alike", _fleet),
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
        (flags.sources if add is _fleet else flags.source)(command)
        add(command)
        flags.foreign(command)
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


def recipe(given: argparse.Namespace) -> dict[str, str | int | float | bool]:
    """Returns the words of a fleet's command that decide how each child is made."""
    others = ("run", "source", "target", "overwrite", "jobs", "ray", "json", "debug")
    return {
        name: value
        for name, value in vars(given).items()
        if name not in others and value is not None
    }


def _convert(command: flags.Parser) -> None:
    flags.output(command)
    flags.json(command)


def _budget(command: flags.Parser) -> None:
    group = command.add_argument_group("budget, one of")
    budget = group.add_mutually_exclusive_group(required=True)
    for name, (_, what) in _POLICIES.items():
        budget.add_argument(f"--{name}", type=flags.number, metavar="X", help=what)


def _compress(command: flags.Parser) -> None:
    _budget(command)
    flags.output(command)
    flags.cut(command)
    add = command.add_argument
    what = "write what was kept, module by module"
    add("--report", type=pathlib.Path, metavar="FILE.json", help=what)
    what = "draw the kept ranks"
    add("--plot", type=pathlib.Path, metavar="FILE.png", help=what)


def _fleet(command: flags.Parser) -> None:
    _budget(command)
    flags.output(
        command,
        target="the folder of all children, and of their manifest",
        overwrite="begin anew, whatever is done: needed for another budget or form",
    )
    flags.cut(command)
    group = command.add_argument_group("the run, which goes on where one ended")
    add = group.add_argument
    what = "read, compress and write so many at once"
    add("--jobs", type=flags.count, metavar="N", help=what)
    what = "on a cluster of Ray: that at ADDRESS, or as ray.init finds it or starts one"
    add("--ray", nargs="?", const="", metavar="ADDRESS", help=what)


def _sweep(command: flags.Parser) -> None:
    add = command.add_argument_group("budgets, one or more").add_argument
    for name, (_, what) in _POLICIES.items():
        add(f"--{name}", type=flags.number, nargs="+", metavar="X", help=what)
    flags.output(command)
    flags.cut(command)


def _inspect(command: flags.Parser) -> None:
    flags.method(command)
    add = command.add_mutually_exclusive_group().add_argument
    what = "show what each serving engine would pay for it"
    add("--engines", action="store_true", help=what)
    what = "draw the singular values"
    add("--plot", type=pathlib.Path, metavar="FILE.png", help=what)
