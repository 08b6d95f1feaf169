"""The command line, `para`: files in, tables out; the library does the work."""

import contextlib
import os
import sys
from collections.abc import Sequence

from para_jax.cli import conflicts, errors, parser, process

# Of `OSError`, those that a user can mend with other words; a full disk is a failure.
_MISTAKES = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
      0, 2 for a user's mistake, 1 for a failure.
    """
    try:
        status = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # As when the output goes to `head`.
        # Python flushes once more at its end, which would raise the same again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _run(words: Sequence[str] | None) -> int:
    debug, status = False, None
    try:
        request = parser.parse(words)
        debug = request.debug
        conflicts.check(request)
        # Help and most mistakes end above, without JAX, which takes seconds to import.
        with process.uncollected():
            process.cache_programs()
            from para_jax.cli import commands
        with contextlib.nullcontext() if debug else process.quiet():
            status = commands.run(request)
    except SystemExit as stop:  # After --help, or a word that is not known.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        print(f"para: {errors.sentence(error)}", file=sys.stderr)
        return 2 if isinstance(error, _MISTAKES) else 1
    return status or 0
