"""The command line of the experiments: `python -m train COMMAND --help`."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from train import presets
from train.commands import arguments, check, demo, grid, run, tables

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "demo": demo.main,
    "table": tables.table,
    "figure": tables.figure,
    "grid": grid.grid,
    "cost": grid.cost,
    "collect": grid.collect,
    "check": check.command(presets.NEEDS, presets.READY),
}
"""Commands with a function's arguments as their words."""


def _call(name: str, words: Sequence[str]) -> None:
    tyro.cli(FUNCTIONS[name], prog=f"python -m train {name}", args=words)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": run.main,
    **{name: functools.partial(_call, name) for name in FUNCTIONS},
}


def main(words: Sequence[str] | None = None) -> None:
    """Run a command; by default the one in the arguments of the process.

    Exits with 2 after a user's mistake, with 1 if a training diverged, and with 130
    after Ctrl-C.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return
    try:
        COMMANDS[arguments.known("command", words[0], COMMANDS)](words[1:])
    except KeyboardInterrupt:
        _stop("stopped; the same command goes on from what it has saved.", 130)
    except FloatingPointError as error:
        _stop(error, 1)
    except (OSError, ValueError) as error:
        # The user can correct these; a traceback would only hide the sentence.
        _stop(error, 2)
    except SystemExit as stop:
        if not isinstance(stop.code, str):
            raise
        _stop(stop.code, 2)  # Python itself would end with 1 after a sentence.


def _help() -> str:
    functions = {"run": run.main, **FUNCTIONS}
    docs = {name: (x.__doc__ or "").splitlines()[0] for name, x in functions.items()}
    lines = "".join(f"\n  {name:10}{doc}" for name, doc in docs.items())
    return f"usage: python -m train COMMAND ...\n{lines}"


def _stop(reason: object, status: int) -> None:
    print(f"python -m train: {reason}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
