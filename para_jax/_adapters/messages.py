"""Messages of errors and warnings, with their remedies as data. Runs on the host.

A message is built of text, of the arguments that it names, and of remedies:

    raise ValueError(Message(f"'{path}' has no alpha. Name it in ", Argument("alpha")))

It is a `str`, so the exception or warning that holds it reads as Python's sentence. The
command line asks for its `parts` and says the same with flags; text, such as a user's
path, it leaves as it is. A message that quotes an error takes the error as a part.
"""

import dataclasses
import enum
import itertools
import re
from collections.abc import Iterable, Iterator


@dataclasses.dataclass(frozen=True)
class Argument:
    """A keyword argument of the library, and a flag of the command line.

    Attributes:
      name: The keyword.
      value: What to pass, or what was passed. None names the argument alone.
    """

    name: str
    value: object = None

    def __post_init__(self) -> None:
        # An error must not keep an array alive, and has to pickle: only text is kept.
        if self.value is not None and self.value is not True:
            object.__setattr__(self, "value", str(self.value))

    def __str__(self) -> str:
        return f"{self.name}={'' if self.value is None else self.value}"


class Remedy(enum.Enum):
    """A remedy with its own words in Python and on the command line."""

    OVERWRITE = "pass overwrite=True"
    RENAME_FIRST = "first: para_jax.names.to_hf"
    NEW_NAMES = "para_jax.names.to_installed"
    OWN_TABLE = "a table of your own"

    def __str__(self) -> str:
        return self.value


Part = str | Argument | Remedy


class Message(str):
    """A sentence in Python's words, with its parts.

    Example:
      >>> from para_jax._adapters.messages import Argument, Message
      >>> inner = ValueError(Message("Leave out ", Argument("alpha", 16), "."))
      >>> outer = Message("Cannot read it: ", inner)
      >>> outer
      'Cannot read it: Leave out alpha=16.'
      >>> outer.parts
      ('Cannot read it: Leave out ', Argument(name='alpha', value='16'), '.')

    Attributes:
      parts: Text, arguments and remedies in their order; messages and errors that were
        given are taken apart. Operations on text, such as `+` and `strip`, drop them.
    """

    parts: tuple[Part, ...]

    def __new__(cls, *parts: Part | BaseException) -> "Message":
        flat = (x for part in parts for x in parts_of(part))
        self = super().__new__(cls, "".join(map(str, parts)))
        self.parts = tuple(_joined(flat))
        return self

    # `str` would be copied and pickled by its text alone. Ray pickles errors.
    def __reduce__(self) -> tuple[type["Message"], tuple[Part, ...]]:
        return type(self), self.parts


def _joined(parts: Iterable[Part]) -> Iterator[Part]:
    """Yield the parts, with neighbouring text as one."""
    for is_text, some in itertools.groupby(parts, lambda x: isinstance(x, str)):
        found = list(some)
        yield from ["".join(map(str, found))] if is_text else found


def parts_of(said: Part | BaseException) -> tuple[Part, ...]:
    """Take a message apart, or the message of an error.

    Anything else has one part: its text.
    """
    if isinstance(said, BaseException):
        # `str(OSError(2, 'No such file'))` is not one of its `args`.
        said = said.args[0] if _holds_message(said) else str(said)
    return said.parts if isinstance(said, Message) else (said,)


def _holds_message(error: BaseException) -> bool:
    return len(error.args) == 1 and isinstance(error.args[0], Message)


def on_one_line(said: Part | BaseException) -> Message:
    """Replace each run of white space in a message by a single space."""
    parts = [
        re.sub(r"\s+", " ", x) if isinstance(x, str) else x for x in parts_of(said)
    ]
    first, last = parts[0], parts[-1]
    if isinstance(first, str):
        parts[0] = first.lstrip()
    if isinstance(last, str):
        parts[-1] = last.rstrip() if len(parts) > 1 else last.strip()
    return Message(*parts)


ALPHA_OR_SCALE = Message(Argument("alpha"), " or ", Argument("scale"))
"""The arguments that tell what the product of two factors is multiplied with."""
