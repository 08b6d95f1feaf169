"""The words of the command line, parsed into requests.

No `argparse.Namespace` leaves this module.
"""

import argparse
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import para_jax as para
from para_jax.cli import flags
from para_jax.cli.request import (
    Compress,
    Convert,
    Cut,
    Fleet,
    Hints,
    Inspect,
    Output,
    Rename,
    Request,
    Sweep,
)
from para_jax.cli.words import BUDGETS

_EXAMPLES = """examples:
  para inspect adapter/                              what is in it
  para compress adapter/ small/ --gamma 0.25         a quarter of the ranks
  para compress adapter/ small/ --epsilon 0.99 --max-rank 8 --profile padded
  para sweep adapter/ children/ --gamma 0.5 0.25 0.125 --epsilon 0.9
  para compress adapter/ small/ --gamma 0.25 --for vllm --adapters-only
  para fleet 'tenants/*/adapter' fleet/ --gamma 0.25  one child a tenant
  para convert run/100/ adapter/ --format peft --alpha 16 --model gemma3
"""


def parse(words: Sequence[str] | None = None) -> Request:
    """Parse the words of a command, those of this process by default.

    Raises:
      SystemExit: after --help and --version, or if a word is not known.
    """
    given = parser().parse_args(words)
    return given.request(given)


def parser() -> flags.Parser:
    """Build the parser of all commands."""
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
    for name, words, what, add, request in _COMMANDS:
        command = commands.add_parser(
            name,
            help=what,
            usage=f"para {name} {words} [options]",
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # The results then know how to become the request of their command.
        command.set_defaults(request=request)
        add(command)
        flags.foreign(command)
    return result


def _add_budget(command: flags.Parser) -> None:
    # Help shows a title for ordinary groups only, hence a group inside a group.
    group = command.add_argument_group("budget, one of")
    budget = group.add_mutually_exclusive_group(required=True)
    for name, what in BUDGETS.items():
        budget.add_argument(f"--{name}", type=flags.number, metavar="X", help=what)


def _add_compress(command: flags.Parser) -> None:
    flags.source(command)
    _add_budget(command)
    flags.output(command)
    flags.cut(command)
    add = command.add_argument
    what = "write a report with the kept ranks of each module"
    add("--report", type=pathlib.Path, metavar="FILE.json", help=what)
    what = "draw the kept ranks"
    add("--plot", type=pathlib.Path, metavar="FILE.png", help=what)


def _compress(given: argparse.Namespace) -> Compress:
    return Compress(
        **_conversion(given),
        cut=_cut(given),
        report=given.report,
        plot=given.plot,
    )


def _add_inspect(command: flags.Parser) -> None:
    flags.source(command)
    flags.method(command)
    # Costs need no singular values, so there is nothing to draw.
    add = command.add_mutually_exclusive_group().add_argument
    what = "show the cost of serving it with each engine"
    add("--engines", action="store_true", help=what)
    what = "draw the singular values"
    add("--plot", type=pathlib.Path, metavar="FILE.png", help=what)


def _inspect(given: argparse.Namespace) -> Inspect:
    return Inspect(
        source=given.source,
        hints=_hints(given),
        method=given.method,
        engines=given.engines,
        plot=given.plot,
        json=given.json,
        debug=given.debug,
    )


def _add_sweep(command: flags.Parser) -> None:
    flags.source(command)
    add = command.add_argument_group("budgets, one or more").add_argument
    for name, what in BUDGETS.items():
        add(f"--{name}", type=flags.number, nargs="+", metavar="X", help=what)
    flags.output(command)
    flags.cut(command)


def _sweep(given: argparse.Namespace) -> Sweep:
    return Sweep(
        **_conversion(given),
        cut=_cut(given),
    )


def _add_fleet(command: flags.Parser) -> None:
    flags.sources(command)
    _add_budget(command)
    flags.output(
        command,
        target="the folder for all children and their manifest",
        overwrite="start over; required to change the budget or the form",
    )
    flags.cut(command)
    group = command.add_argument_group(
        "execution; an interrupted run continues where it ended"
    )
    add = group.add_argument
    what = "process this many adapters at once"
    add("--jobs", type=flags.count, metavar="N", help=what)
    what = (
        "run on a Ray cluster: the one at ADDRESS, or the one ray.init finds or starts"
    )
    add("--ray", nargs="?", const="", metavar="ADDRESS", help=what)


def _fleet(given: argparse.Namespace) -> Fleet:
    return Fleet(
        patterns=tuple(given.source),
        target=given.target,
        hints=_hints(given),
        output=_output(given),
        cut=_cut(given),
        jobs=given.jobs,
        ray=given.ray,
        json=given.json,
        debug=given.debug,
    )


def _add_convert(command: flags.Parser) -> None:
    flags.source(command)
    flags.output(command)
    flags.json(command)


def _convert(given: argparse.Namespace) -> Convert:
    return Convert(
        **_conversion(given),
    )


def _conversion(given: argparse.Namespace) -> dict[str, Any]:
    """Collect the words of every command from one SRC to DST."""
    return {
        "source": given.source,
        "target": given.target,
        "hints": _hints(given),
        "output": _output(given),
        "json": given.json,
        "debug": given.debug,
    }


def _hints(given: argparse.Namespace) -> Hints:
    return Hints(
        adapters_only=given.adapters_only,
        layout=given.layout,
        alpha=given.alpha,
        scale=given.scale,
        stack_axis=given.stack_axis,
    )


def _output(given: argparse.Namespace) -> Output:
    rename = Rename(
        model=given.model,
        ecosystem=given.ecosystem,
        head_dim=given.head_dim,
        layers=given.layers,
    )
    return Output(
        format=given.format,
        profile=given.profile,
        engine=given.engine,
        overwrite=given.overwrite,
        rename=rename,
    )


def _cut(given: argparse.Namespace) -> Cut:
    return Cut(
        budgets=tuple(_budgets(given)),
        method=given.method,
        scope=given.scope,
        score=given.score,
        base=given.base,
        min_rank=given.min_rank,
        max_rank=given.max_rank,
        multiple_of=given.multiple_of,
        dtype=given.dtype,
    )


def _budgets(given: argparse.Namespace) -> Iterator[tuple[str, float]]:
    for name in BUDGETS:
        values = getattr(given, name)
        # `sweep` takes several values a flag, the other commands one.
        for value in values if isinstance(values, list) else [values]:
            if value is not None:
                yield name, value


_WRITE = "write one smaller adapter"
# Name, positional words, help, flags, request.
_COMMANDS = (
    ("compress", "SRC DST BUDGET", _WRITE, _add_compress, _compress),
    ("inspect", "SRC", "show what an adapter contains", _add_inspect, _inspect),
    ("sweep", "SRC DST BUDGETS", "write one adapter per budget", _add_sweep, _sweep),
    ("fleet", "SRC DST BUDGET", "compress many adapters alike", _add_fleet, _fleet),
    (
        "convert",
        "SRC DST",
        "write an adapter in another format",
        _add_convert,
        _convert,
    ),
)
