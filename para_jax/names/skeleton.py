"""A model's modules, and where transformers puts former ones.

Source: `core_model_loading.py` (transformers 5.0 to 5.24).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from para_jax.names.patterns import slashed

Shape = tuple[int, ...]


class Place(NamedTuple):
    """The place of a former module's outputs in a module of today.

    Attributes:
      path: The module, or the bare parameter.
      outputs: Which of the former module's outputs, if it was divided.
      half: Which half of the outputs of `path`, if gate (0) and up (1) were joined.
      expert: The number of the expert, if `path` holds all experts.
    """

    path: str
    outputs: slice = slice(None)
    half: int | None = None
    expert: int | None = None


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """The names and shapes of a model's weights, with the renames that lead to them.

    Attributes:
      title: The model's class and the version of transformers, for errors.
      modules: `(m, n)` of every module that PEFT adapts, by path; `()` for
        convolutions.
      parameters: `(E, m, n)` of every other matrix or stack of them, as PEFT reads it,
        by path.
      weights: The shape of every weight by transformers' name.
      renamings: transformers' renames of keys.
      converters: transformers' conversions of weights.
      prefix: The name of the model within one with a head.
    """

    title: str
    modules: Mapping[str, Shape]
    parameters: Mapping[str, Shape]
    weights: Mapping[str, Shape]
    renamings: Sequence[Any]
    converters: Sequence[Any]
    prefix: str

    def places(self, path: str) -> list[Place]:
        """Return the places of a former module, none if the model has no such module.

        Raises:
          ValueError: if transformers computes the new weight in a way that an update
            of low rank does not survive, or that is not known here.
        """
        if self._has(path):
            return [self._apart(Place(path))]
        owner, _, last = path.rpartition("/")
        if owner in self.parameters and last.isdecimal():  # An absent expert.
            return [Place(owner, expert=int(last))]
        name = path.replace("/", ".")
        for key in (f"{name}.weight", name):
            found = [x for x in self._found(key) if self._has(x.path)]
            if found:
                return [self._apart(x) for x in found]
        return []

    def renamed(self, key: str) -> str:
        """Return the name of a tensor that is renamed and no more, or `key` itself."""
        places = [] if key in self.weights else self._found(key)
        if len(places) == 1 and places[0][1:] == Place("")[1:]:
            name = places[0].path.replace("/", ".")
            # A weight's own module has lost its last word.
            name = f"{name}.weight" if name not in self.weights else name
            return name if name in self.weights else key
        return key

    def _has(self, path: str) -> bool:
        return path in self.modules or path in self.parameters

    def _apart(self, place: Place) -> Place:
        """Return a module that PEFT would take for an expert as its bare parameter."""
        weight = f"{place.path}/weight"
        return place._replace(path=weight) if weight in self.parameters else place

    def _found(self, key: str) -> list[Place]:
        for renaming in self.renamings:
            key, _ = renaming.rename_source_key(key)
        for converter in self.converters:
            new, source = converter.rename_source_key(key)
            if source is not None:
                return self._converted(converter, source, key, new)
        return [Place(self._path(key))]

    def _path(self, key: str) -> str:
        """Return the path of a weight, with or without the prefix of a head's model."""
        if key not in self.weights:
            start = f"{self.prefix}."
            others = [f"{start}{key}", key.removeprefix(start)]
            key = next((x for x in others if x in self.weights), key)
        path = slashed(key)
        module = path.removesuffix("/weight")
        return module if module in self.modules else path

    def _converted(
        self, converter: Any, source: str, key: str, new: str
    ) -> list[Place]:
        steps = [
            (type(x).__name__, getattr(x, "dim", None)) for x in converter.operations
        ]
        merged = [("MergeModulelist", 0)]
        sources, targets = converter.source_patterns, converter.target_patterns
        if steps in (merged, [*merged, ("Concatenate", 1)]) and len(sources) < 3:
            expert = int(re.findall(r"(?<=\.)\d+(?=\.)", key)[-1])
            half = sources.index(source) if len(sources) == 2 else None
            return [Place(self._path(new), half=half, expert=expert)]
        if steps == [("Concatenate", 0)] and len(sources) == 2:
            return [Place(self._path(new), half=sources.index(source))]
        if steps in ([("Chunk", 0)], [("Split", 0)]):
            names = [new.replace(targets[0], x, 1) for x in targets]
            return self._divided(names)
        how = ", ".join(name for name, _ in steps)
        raise ValueError(
            f"'{key}' became '{new}' in {self.title} by {how}, which is not known here "
            "for an update of low rank. Train the adapter anew with this transformers."
        )

    def _divided(self, names: Sequence[str]) -> list[Place]:
        paths = [self._path(name) for name in names]
        places, start = [], 0
        for path in paths:
            if len(shape := self.modules.get(path, ())) != 2:
                return []
            places.append(Place(path, outputs=slice(start, start + shape[1])))
            start += shape[1]
        return places
