"""Match the module names of a model family, in its authors' code and in diffusers.

A name may hold `{}` for any number: the same numbers, in the same order, on both sides.
Runs on the host.
"""

import dataclasses
import functools
import re
from typing import Literal, NamedTuple

Form = Literal["same", "thirds", "single", "mlp", "swapped", "continuous"]
"""The order of the authors' outputs in those of diffusers, see `fused.sizes`."""
Vocabulary = Literal["original", "diffusers"]


class Module(NamedTuple):
    """One kind of module with LoRA updates.

    Attributes:
      original: The dotted name in the authors' code.
      parts: The dotted names in diffusers: several if the authors fuse them.
      form: The order of the outputs of the parts.
    """

    original: str
    parts: tuple[str, ...]
    form: Form = "same"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """The modules of a family of models.

    Attributes:
      name: The family, for messages.
      component: The attribute of a diffusers pipeline with such a model; empty if
        several have one.
      modules: All modules with LoRA updates.
    """

    name: str
    component: str
    modules: tuple[Module, ...]


class Match(NamedTuple):
    """A module found by its name in a family.

    Attributes:
      module: The kind of module.
      numbers: The number in the place of each `{}`.
      part: The index in `module.parts`; None if the name is `module.original`.
    """

    module: Module
    numbers: tuple[str, ...]
    part: int | None

    @property
    def original(self) -> str:
        """The dotted name in the authors' code."""
        return self.module.original.format(*self.numbers)

    @property
    def parts(self) -> tuple[str, ...]:
        """The dotted names in diffusers: of one part if the name is that part's."""
        found = tuple(x.format(*self.numbers) for x in self.module.parts)
        return found if self.part is None else (found[self.part],)


def match(
    family: Family, name: str, vocabulary: Vocabulary, *, separator: str = "."
) -> Match | None:
    """Find a module by its name.

    Args:
      family: The family to search.
      name: The name, without the name of the component.
      vocabulary: The names to search, of the authors or of diffusers.
      separator: The string in `name` for each dot.
    """
    table = _table(family, vocabulary, separator)
    for pattern, module, part in table.get(_skeleton(name), ()):
        if found := pattern.fullmatch(name):
            return Match(module, found.groups(), part)
    return None


_Row = tuple[re.Pattern[str], Module, int | None]


@functools.cache
def _table(
    family: Family, vocabulary: Vocabulary, separator: str
) -> dict[str, list[_Row]]:
    """Return the patterns of all names, by the name without its numbers."""
    # Few patterns share a skeleton, so few are tried per name.
    result: dict[str, list[_Row]] = {}
    for module in family.modules:
        names: list[tuple[str, int | None]] = [(module.original, None)]
        if vocabulary == "diffusers":
            # Such a module is the same on both sides, so its name is that of the whole.
            single = len(module.parts) == 1 and module.form == "same"
            names = [(x, None if single else i) for i, x in enumerate(module.parts)]
        for template, part in names:
            name = template.replace(".", separator)
            pattern = re.escape(name).replace(re.escape("{}"), r"(\d+)")
            key = _skeleton(name.replace("{}", "0"))
            result.setdefault(key, []).append((re.compile(pattern), module, part))
    return result


def _skeleton(name: str) -> str:
    return re.sub(r"\d+", "#", name)
