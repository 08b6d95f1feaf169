r"""PEFT's patterns of module names, among hundreds of which each module is looked up.

A key matches a module by the regular expression `(.*\.)?(KEY)$`. Nearly all keys are
names, whole or the end of a module's, whose dots match any character; or whole names
behind `^`. Those are looked up, so that a file takes time in proportion to its modules.
All other keys are tried one by one.
"""

import functools
import re
from collections.abc import Iterator


@functools.lru_cache(maxsize=64)
def patterns(keys: tuple[str, ...]) -> "Patterns":
    """Return the patterns of a file, made once."""
    return Patterns(keys)


class Patterns:
    """The keys of a table such as `rank_pattern`, in its order.

    Args:
      keys: All different.
    """

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = keys
        # By length and places of the dots: then by the name.
        self._ends: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        self._whole: dict[str, int] = {}
        self._others: list[tuple[int, re.Pattern[str]]] = []
        for place, key in enumerate(keys):
            if _is_name(key):
                dots = tuple(i for i, x in enumerate(key) if x == ".")
                of_length = self._ends.setdefault(len(key), {})
                of_length.setdefault(dots, {})[key] = place
            elif (name := _anchored(key)) is not None:
                self._whole[name] = place
            else:
                self._others.append((place, re.compile(rf"(.*\.)?({key})$")))

    def first(self, module: str) -> str | None:
        """Return the first key to match a module's name, if any."""
        place = min(self._places(module), default=None)
        return None if place is None else self._keys[place]

    def all(self, module: str) -> set[str]:
        """Return all keys that match a module's name."""
        return {self._keys[place] for place in self._places(module)}

    def _places(self, module: str) -> Iterator[int]:
        if module in self._whole:
            yield self._whole[module]
        starts = [0, *(i + 1 for i, x in enumerate(module) if x == ".")]
        for start in starts:
            end = module[start:]
            for dots, names in self._ends.get(len(end), {}).items():
                masked = end
                for i in dots:
                    masked = f"{masked[:i]}.{masked[i + 1 :]}"
                if masked in names:
                    yield names[masked]
        for place, pattern in self._others:
            if pattern.match(module):
                yield place


def is_plain(key: str) -> bool:
    """Return whether a key is a name, or a whole name behind `^`."""
    return _is_name(key) or _anchored(key) is not None


@functools.cache
def _is_name(key: str) -> bool:
    return re.fullmatch(r"[\w.]*", key) is not None


def _anchored(key: str) -> str | None:
    """Return the name of `^NAME`, written as `re.escape` does."""
    name = re.sub(r"\\(.)", r"\1", key[1:], flags=re.DOTALL)
    return name if key == f"^{re.escape(name)}" else None
