"""The command line of the experiments: `python -m train COMMAND --help`."""

import sys
from collections.abc import Callable, Sequence

import tyro

from train import arguments, command, demo

_MISTAKES = (OSError, ValueError)


def _demo(words: Sequence[str]) -> None:
    tyro.cli(demo.main, prog="python -m train demo", args=words)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": _demo,
    "run": command.main,
}


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command that `words` name; by default those of the process.

    Exits with 2 after a user's mistake, and with 1 after a failure.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m train {{{','.join(COMMANDS)}}} ...")
        return
    try:
        COMMANDS[arguments.known("command", words[0], COMMANDS)](words[1:])
    except FloatingPointError as error:
        _stop(error, 1)
    except _MISTAKES as error:
        _stop(error, 2)


def _stop(error: Exception, status: int) -> None:
    # What is wrong is for the user to put right: no traceback needed.
    print(f"python -m train: {error}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
