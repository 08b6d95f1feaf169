r"""Final answers: finding them in a text, and testing two for equality.

A text gives its answer after "The answer is:" (MetaMath), after "####" (GSM8K), or in
`\boxed{}` (MATH). Numbers are compared exactly. Other mathematics is compared by the
library math-verify, through SymPy, in a process that can be stopped: an answer like
9^{9^{9^9}} would never finish. A text is parsed, and never run as code. Runs on the
host.
"""

import contextlib
import fractions
import json
import pathlib
import re
import select
import subprocess
import sys
from types import TracebackType

MARKERS = ("The answer is:", "####")
"""The marks before an answer, by priority."""

LONGEST = 1000
"""Longest answer to compare as mathematics; longer ones must be the same text."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_NUMBER = re.compile(
    r"(?P<sign>-?)\s*(?P<value>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:\s*/\s*(?P<below>\d+))?"
)
# A thousands separator in LaTeX, currencies and the other minus sign.
_CLEAN = str.maketrans({"$": "", "\\": "", "{": "", "}": "", "!": "", "−": "-"})

# A dollar sign, and LaTeX's space, which must not be taken for a new row of a matrix.
_NEITHER = re.compile(r"\\?\$|(?<!\\)\\\s")

_WORKER = pathlib.Path(__file__).with_name("symbolic.py")
# Half of one is enough to import SymPy, if the machine does nothing else.
_START_SECONDS = 60


def final(text: str) -> str | None:
    r"""Return the final answer of a text, or None.

    The answer follows the last occurrence of the first marker in the text, up to
    the end of the line and without its full stop. Without a marker, it is the
    content of the last box. A box after a marker counts as its content.
    """
    for marker in MARKERS:
        if marker in text:
            # The last marker: the reasoning before may contain others.
            tail = text.rsplit(marker, 1)[1].strip().split("\n")[0]
            return boxed(tail) or _without_stop(tail) or None
    return boxed(text)


def boxed(text: str) -> str | None:
    r"""Return the contents of the last `\boxed{}` or `\fbox{}`, braces balanced.

    `\boxed 5` has no braces and holds the next word. None if there is no box, or it is
    empty or does not end.
    """
    found = list(_BOX.finditer(text))
    if not found:
        return None
    rest = text[found[-1].end() :]
    if not rest.startswith("{"):
        words = re.split(r"[\s$]", rest, maxsplit=1)
        return _without_stop(words[0]) or None
    # Braces nest, so a pattern alone cannot find the end.
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", rest, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)  # Not \{ and \}.
        if depth == 0:
            return rest[1 : brace.start()].strip() or None
    return None


def number(text: str) -> fractions.Fraction | None:
    """Return the first number in a text, exactly; None if there is none.

    Thousands may be separated by commas, and a currency may come first:
    "-$1,234.50" is -1234.5. "3/4" is a fraction. Text longer than `LONGEST` is not
    a number: Python limits the digits that it reads.
    """
    found = _NUMBER.search(text.translate(_CLEAN))
    if not found or len(found.group()) > LONGEST or not int(found["below"] or 1):
        return None
    value = fractions.Fraction(found["value"].replace(",", ""))
    return (-value if found["sign"] else value) / int(found["below"] or 1)


def same_number(want: str, got: str | None) -> bool:
    """Test whether two answers have equal first numbers."""
    if got is None or (value := number(got)) is None:
        return False
    return value == number(want)


class Grader:
    """A comparison of answers as mathematics. Use it in `with`.

    It keeps a process, which is started when it is first needed, and stopped and
    replaced when a comparison takes too long, needs too much memory, or ends it.
    """

    def __init__(self, seconds: float = 5) -> None:
        """Set the time limit of one comparison; beyond it, answers count as unequal."""
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Grader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def same(self, want: str, got: str | None) -> bool:
        """Test whether `got` equals the right answer `want`.

        In doubt, answers count as unequal: the sine of an angle in degrees and
        the period of a decimal are not understood. Units are ignored: "5 cm"
        equals "5".
        """
        if got is None:
            return False
        want, got = plain(want), plain(got)
        # Equal texts are equal answers, without a parser.
        if want == got:
            return True
        if not got or max(len(want), len(got)) > LONGEST:
            return False
        return self._ask(json.dumps([want, got])) == "true"

    def _ask(self, line: str) -> str:
        """Return the worker's reply, or nothing without one."""
        # One process serves many questions: importing SymPy takes seconds.
        process = self._process or self._start()
        assert process.stdin is not None  # As `Popen` was asked for it.
        with contextlib.suppress(BrokenPipeError):  # There will be no reply then.
            process.stdin.write(f"{line}\n")
        reply = _line(process, self._seconds)
        # A worker past its time limit is stuck in SymPy: replace it.
        if not reply:
            self._stop()
        return reply

    def _start(self) -> subprocess.Popen[str]:
        # -P: the worker's neighbours in its folder hide no module of the same name.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        if not _line(self._process, _START_SECONDS):
            self._stop()
            raise RuntimeError(
                f"'{_WORKER}' did not start within {_START_SECONDS} s. It needs the "
                "library math-verify: pip install 'para-jax[train]'."
            )
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # Closes the pipes and waits.
            self._process = None


def plain(text: str) -> str:
    """Normalise an answer: one line, no dollar signs, no final full stop."""
    return _without_stop(" ".join(_NEITHER.sub(" ", text).split()))


def _without_stop(text: str) -> str:
    return text.strip().removesuffix(".").strip()


def _line(process: subprocess.Popen[str], seconds: float) -> str:
    """Return the next line of a process, or nothing after its end or the time limit."""
    assert process.stdout is not None  # As `Popen` was asked for it.
    # `select` on a pipe gives a time limit that `readline` lacks.
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline().strip() if ready else ""
