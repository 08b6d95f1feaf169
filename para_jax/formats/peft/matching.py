"""Which modules a name in a PEFT config means. A file has hundreds of both."""

import functools
import re
from collections.abc import Iterable


@functools.lru_cache(maxsize=2**14)  # A file's modules are looked up several times.
def first_match(keys: tuple[str, ...], module: str) -> str | None:
    """Returns the first key of a pattern that matches the module's name."""
    return next((key for key in keys if matches(key, module)), None)


def matches(key: str, module: str) -> bool:
    r"""Returns whether `(.*\.)?(KEY)$` matches, which is PEFT's rule.

    A full name is compared without compiling it: a large model has hundreds, and a dot
    is all that they have of a regular expression.
    """
    if not _is_name(key):
        return re.match(rf"(.*\.)?({key})$", module) is not None
    start = len(module) - len(key)
    if start < 0 or (start and module[start - 1] != "."):
        return False
    for part in key.split("."):
        if not module.startswith(part, start):
            return False
        start += len(part) + 1  # A dot matches whatever is there.
    return True


@functools.cache
def _is_name(key: str) -> bool:
    return re.fullmatch(r"[\w.]*", key) is not None


def ends_in(module: str, names: Iterable[str]) -> bool:
    """Returns whether a name is the module's, or its end."""
    parts = module.split(".")
    return not {".".join(parts[i:]) for i in range(len(parts))}.isdisjoint(names)
