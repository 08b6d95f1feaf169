"""One module's two names as a pair of patterns.

`{i}` stands for the layer's number and `{e}` for an expert's. JAX paths have slashes,
Hugging Face names dots; here, as in `Checkpoint`, both become paths with slashes. A
stack has a `*` where its members have a number: `layers/attn/q/*`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from para_jax._adapters.messages import Argument, Message

# Around the parameters of a whole program; no part of a module's name.
_AROUND = r"(?:(?:params|base)/)*"


@dataclasses.dataclass(frozen=True)
class Module:
    """A Hugging Face module, and how a JAX kernel of it differs.

    Attributes:
      name: Its pattern, such as `model.layers.{i}.self_attn.q_proj`. A pattern that
        ends in `{e}` is a parameter that holds all experts, `[E, ...]`.
      step: Where a scan runs over blocks of layers: the number of layers in a block.
        Layer `step * i + offset` has the JAX number `i`.
      offset: The layer's place in its block.
      part: `blocks` and `rest` divide a model whose number of layers is no multiple of
        `step`: the whole blocks, and the layers after them.
      scaled: The JAX kernel holds the factor `1 / sqrt(head_dim)` of the attention.
      interleaved: The two outputs that a rotary embedding turns lie side by side in
        JAX (0, 1), (2, 3) ..., and half a head apart in Hugging Face.
      half: Which half of the outputs of a fused parameter the JAX kernel is.

    Example:
      >>> from para_jax import names
      >>> query = names.Module("model.layers.{i}.self_attn.q_proj", scaled=True)
      >>> parent = {"layers/3/q": adapter(6, 4, 8, 2)}
      >>> named = names.to_hf(parent, {"layers/{i}/q": query}, head_dim=4)
      >>> (x,) = named.adapters.values()
      >>> float((x.scale * x.a @ x.b).max())
      16.0
    """

    name: str
    step: int = 1
    offset: int = 0
    part: Literal["all", "blocks", "rest"] = "all"
    scaled: bool = False
    interleaved: bool = False
    half: Literal[0, 1] | None = None


Table = Mapping[str, Module]
"""The Hugging Face module of every JAX pattern."""


class Match(NamedTuple):
    """A path that fits a pattern: its number of layer and of expert, or `*`."""

    i: str | None
    e: str | None


class Pair(NamedTuple):
    """One entry of a table, read in one of its two directions."""

    source: str
    target: str
    module: Module


def forward(table: Table) -> list[Pair]:
    """Returns the entries from JAX to Hugging Face; the inverse is `backward`."""
    return [Pair(path, slashed(x.name), x) for path, x in table.items()]


def backward(table: Table) -> list[Pair]:
    """Returns the entries from Hugging Face to JAX."""
    return [Pair(slashed(x.name), path, x) for path, x in table.items()]


def slashed(name: str) -> str:
    """Returns a Hugging Face name as a path."""
    return name.replace(".", "/")


def match(pattern: str, path: str) -> Match | None:
    """Returns what the placeholders of `pattern` stand for in `path`, if it fits."""
    found = _compiled(pattern).fullmatch(path)
    return found and Match(**{"i": None, "e": None, **found.groupdict()})


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    number = r"(?P<\1>0|[1-9][0-9]*|[*])"
    return re.compile(_AROUND + re.sub(r"\\\{([ie])\\\}", number, re.escape(pattern)))


def fill(pattern: str, i: object, e: object) -> str:
    """Returns the path of a pattern for one layer and one expert."""
    return pattern.replace("{i}", str(i)).replace("{e}", str(e))


def placeholders(pattern: str) -> list[str]:
    """Returns the letters of a pattern's placeholders, in their order."""
    return re.findall(r"\{([ie])\}", pattern)


def number(module: Module, i: int, path: str, layers: int | None) -> int:
    """Returns the Hugging Face number of the JAX layer `i`; the inverse is `place`."""
    if module.part == "rest":
        return _inside(_whole(module, path, layers) + i, path, layers)
    layer = module.step * i + module.offset
    return layer if module.part == "all" else _inside(layer, path, layers)


def place(module: Module, layer: int, path: str, layers: int | None) -> int | None:
    """Returns the JAX number of a Hugging Face layer, or None if it is elsewhere."""
    if module.part != "all":
        whole = _whole(module, path, layers)
        if (_inside(layer, path, layers) < whole) != (module.part == "blocks"):
            return None
        if module.part == "rest":
            return layer - whole
    i, offset = divmod(layer, module.step)
    return i if offset == module.offset else None


def _whole(module: Module, path: str, layers: int | None) -> int:
    """Returns the number of layers in whole blocks."""
    if layers is None:
        raise ValueError(
            Message(
                f"'{path}' is of a model that is scanned in blocks of {module.step} "
                "layers, with the rest of them after the last block, so its number "
                "depends on theirs. Give ",
                Argument("layers"),
                ", num_hidden_layers in the model's config.json.",
            )
        )
    return layers - layers % module.step


def _inside(layer: int, path: str, layers: int | None) -> int:
    if layers is not None and layer >= layers:
        raise ValueError(
            Message(
                f"'{path}' has layer {layer} of a model of {layers}, counted from 0. "
                "Correct ",
                Argument("layers"),
                ".",
            )
        )
    return layer


def problems(table: Table) -> Iterator[str]:
    """Yields what keeps a table from being read both ways."""
    seen: dict[tuple[object, ...], str] = {}
    for path, x in table.items():
        sides = [set(re.findall(r"\{[^}]*\}?|\}", side)) for side in (path, x.name)]
        if sides[0] != sides[1] or sides[0] - {"{i}", "{e}"}:
            yield (
                f"'{path}' and '{x.name}': expected the placeholders {{i}} (layer) and "
                "{e} (expert), the same on both sides"
            )
        key = (slashed(x.name), x.offset, x.part, x.half)
        if key in seen:
            yield f"'{seen[key]}' and '{path}' are both '{x.name}'"
        seen[key] = path
