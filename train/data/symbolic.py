"""Equality of two answers in LaTeX, in a process of its own, for `answers.Grader`.

It reads pairs [wanted, got] from its input, each a line of JSON, and writes a line of
JSON for each. Nothing of this package is imported, so that it starts in half a second.
Runs on the host.
"""

import contextlib
import json
import logging
import os
import re
import resource
import sys

import math_verify

MEMORY = 4 << 30
"""Bytes of the process, limited: powers of powers would fill any machine."""

# Whatever is between the dollars is the answer: nothing is to be looked for in it, and
# so the library's parser of plain expressions, which runs them as code, is never used.
_CONFIG = (math_verify.LatexExtractionConfig(boxed_match_priority=-1),)

_IN_BASE = re.compile(r"(\w+)_\{?(\d+)\}?")


def equal(want: str, got: str) -> bool:
    """Test whether two answers are equal as mathematics."""
    bases = [_IN_BASE.fullmatch(x) for x in (want, got)]
    if all(bases):  # The library reads the digits alone.
        return len({x.groups() for x in bases if x}) == 1
    # No time limit here: a signal does not interrupt code inside of C, and the
    # caller ends this process.
    first, second = (
        math_verify.parse(f"${x}$", _CONFIG, parsing_timeout=0) for x in (want, got)
    )
    return math_verify.verify(
        first, second, allow_set_relation_comp=True, timeout_seconds=0
    )


def main() -> None:
    """Answer until the end of the input."""
    with contextlib.suppress(OSError, ValueError):  # Not on every system.
        # The caller's time limit alone is too late: 9^{9^{9^9}} fills the memory first.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    # Output of the libraries must not mix with the replies.
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        # File descriptor 1 now goes to stderr; replies have their own.
        os.dup2(2, 1)
        # Tells the parent that imports are done, before its time limit counts.
        replies.write('"ready"\n')
        for line in sys.stdin:
            try:
                reply = equal(*json.loads(line))
            except (ArithmeticError, MemoryError, RecursionError, ValueError):
                reply = False
            replies.write(f"{json.dumps(reply)}\n")


if __name__ == "__main__":
    main()
