"""One model family's module names, in its authors' code and in diffusers. Host.

A name may hold `{}` where any number stands: the same numbers, in the same order, on
both sides.
"""

import dataclasses
import functools
import re
from typing import Literal, NamedTuple

Form = Literal["same", "thirds", "single", "mlp", "swapped", "continuous"]
"""How the outputs of the authors' module lie in those of diffusers, see `fused.py`."""
Vocabulary = Literal["original", "diffusers"]


class Module(NamedTuple):
    """One kind of module that can carry a LoRA update.

    Attributes:
      original: The dotted name in the authors' code.
      parts: The dotted names in diffusers: several if the authors fuse them.
      form: Where the outputs of the parts lie.
    """

    original: str
    parts: tuple[str, ...]
    form: Form = "same"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """The modules of a family of models.

    Attributes:
      name: The family, for messages.
      component: The attribute of a diffusers pipeline that holds such a model; empty
        if several do.
      modules: All modules that can carry a LoRA update.
    """

    name: str
    component: str
    modules: tuple[Module, ...]


class Match(NamedTuple):
    """A module whose name a family knows.

    Attributes:
      module: The kind of module.
      numbers: What stands for each `{}`.
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
        """The dotted names in diffusers, of this part alone if the name is of one."""
        found = tuple(x.format(*self.numbers) for x in self.module.parts)
        return found if self.part is None else (found[self.part],)


def match(
    family: Family, name: str, vocabulary: Vocabulary, *, separator: str = "."
) -> Match | None:
    """Find a module by its name.

    Args:
      family: The family to search.
      name: The name, without the name of the component.
      vocabulary: Whose names to search.
      separator: What stands in `name` for each dot.
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
    """List the patterns of all names, by the name without its numbers."""
    result: dict[str, list[_Row]] = {}
    for module in family.modules:
        names: list[tuple[str, int | None]] = [(module.original, None)]
        if vocabulary == "diffusers":
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
