"""The command line of the experiments: `python -m train COMMAND --help`."""

import sys
from collections.abc import Sequence

import tyro

from train import demo
from train.experiments import commands
from train.grid import command as grid

COMMANDS = {"demo": demo.main}
COMMANDS |= {"table": commands.table, "figure": commands.figure}
COMMANDS |= {"grid": grid.grid, "cost": grid.cost, "collect": grid.collect}


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command that `args` names; by default those of the process."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="python -m train", args=args
        )
    except FileNotFoundError as error:
        # What is missing is for the user to provide: no traceback needed.
        sys.exit(f"python -m train: {error}")


if __name__ == "__main__":
    main()
