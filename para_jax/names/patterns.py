"""Match and fill the patterns of a module's two names.

`{i}` stands for the layer's number and `{e}` for an expert's; in our own tables also
`{11i+10}`, which is 10 for the first layer and 21 for the second. JAX paths have
slashes, Hugging Face names dots; here, as in `Checkpoint`, both become paths with
slashes. A stack has a `*` in the place of its members' number: `layers/attn/q/*`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from para_jax._adapters.messages import Argument, Message

# Levels around all parameters of a program, which are not part of a module's name.
_AROUND = r"(?:(?:params|base)/)*"
_PLACEHOLDER = re.compile(r"\{(?P<step>\d*)(?P<letter>[ie])(?:\+(?P<first>\d+))?\}")


@dataclasses.dataclass(frozen=True)
class Module:
    """A Hugging Face module, with the differences of its JAX kernel.

    Attributes:
      name: Its pattern, such as `model.layers.{i}.self_attn.q_proj`. A pattern ending
        in `{e}` names a parameter that holds all experts, `[E, ...]`.
      step: The number of layers in a block, for a scan over blocks of layers. Layer
        `step * i + offset` has the JAX number `i`.
      offset: The layer's place in its block.
      count: The number of JAX layers with it, if these are numbered apart from others:
        the dense layers before those with experts.
      cycle: The length of a cycle of layers of several kinds.
      places: The places in a cycle of the layers with it.
      part: `blocks` and `rest` divide a model with a number of layers that is not a
        multiple of `step`: the whole blocks, and the layers after them.
      scaled: The JAX kernel holds the factor `1 / sqrt(head_dim)` of the attention.
      divided: JAX adds the update to the kernel divided by the square root of its
        inputs, where Hugging Face divides the output of both.
      interleaved: The two outputs rotated together by a rotary embedding lie side by
        side in JAX (0, 1), (2, 3) ..., and half a head apart in Hugging Face.
      half: The JAX kernel's half of the outputs of a fused parameter: gate is 0, up 1.
      turned: PEFT takes the parameter's inputs for its outputs, so its update is the
        transpose.
      alternating: The outputs of gate and up take turns in the fused parameter, instead
        of up following gate.
      heads: The input axes of Keras's factor `a`, by letter: `n` heads, `d` features,
        `h` the size of a head. See `head_axes.py`.

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
    count: int | None = None
    cycle: int = 1
    places: tuple[int, ...] = (0,)
    part: Literal["all", "blocks", "rest"] = "all"
    scaled: bool = False
    divided: bool = False
    interleaved: bool = False
    half: Literal[0, 1] | None = None
    turned: bool = False
    alternating: bool = False
    heads: Literal["nd", "dn", "nh"] | None = None


Table = Mapping[str, Module]
"""The Hugging Face module of every JAX pattern."""


class Match(NamedTuple):
    """The numbers of layer and expert in a path that fits a pattern, or `*`."""

    i: str | None
    e: str | None


class Pair(NamedTuple):
    """One entry of a table, read in one of its two directions."""

    source: str
    target: str
    module: Module


def forward(table: Table) -> list[Pair]:
    """Return the entries from JAX to Hugging Face; the inverse is `backward`."""
    return [Pair(path, slashed(x.name), x) for path, x in table.items()]


def backward(table: Table) -> list[Pair]:
    """Return the entries from Hugging Face to JAX."""
    return [Pair(slashed(x.name), path, x) for path, x in table.items()]


def slashed(name: str) -> str:
    """Return a Hugging Face name as a path."""
    return name.replace(".", "/")


def match(pattern: str, path: str) -> Match | None:
    """Return the values of a pattern's placeholders, or None if `path` does not fit."""
    found = _compiled(pattern).fullmatch(path)
    if found is None:
        return None
    numbers = {"i": None, "e": None, **found.groupdict()}
    for x in _PLACEHOLDER.finditer(pattern):
        if x["step"] and (count := numbers[x["letter"]]) is not None:
            # A stack has no number, so it is none of such a row.
            rest = int(count) - int(x["first"] or 0) if count != "*" else -1
            if rest < 0 or rest % int(x["step"]):
                return None
            numbers[x["letter"]] = str(rest // int(x["step"]))
    return Match(**numbers)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    # No leading zeros: `layers/03` would be renamed to layer 3 and not back.
    number = r"(?P<{}>0|[1-9][0-9]*|[*])"
    text, end = _AROUND, 0
    for x in _PLACEHOLDER.finditer(pattern):
        text += re.escape(pattern[end : x.start()]) + number.format(x["letter"])
        end = x.end()
    return re.compile(text + re.escape(pattern[end:]))


def fill(pattern: str, i: object, e: object) -> str:
    """Return the path of a pattern for one layer and one expert."""
    given = {"i": i, "e": e}

    def number(x: re.Match[str]) -> str:
        value = given[x["letter"]]
        if not x["step"]:
            return str(value)
        return str(int(x["step"]) * int(str(value)) + int(x["first"] or 0))

    return _PLACEHOLDER.sub(number, pattern)


def placeholders(pattern: str) -> list[str]:
    """Return the letters of a pattern's placeholders, in their order."""
    return [x["letter"] for x in _PLACEHOLDER.finditer(pattern)]


def number(module: Module, i: int, path: str, layers: int | None) -> int | None:
    """Return the Hugging Face number of the JAX layer `i`; the inverse is `place`.

    Returns:
      The number, or None if the JAX layer `i` has no such module.
    """
    if module.part == "rest":
        return _inside(_whole(module, path, layers) + i, path, layers)
    layer = module.step * i + module.offset
    if not _has(module, i, layer):
        return None
    return layer if module.part == "all" else _inside(layer, path, layers)


def _has(module: Module, i: int, layer: int) -> bool:
    counted = module.count is None or i < module.count
    return counted and layer % module.cycle in module.places


def place(module: Module, layer: int, path: str, layers: int | None) -> int | None:
    """Return the JAX number of a Hugging Face layer, or None if it is elsewhere."""
    if module.part != "all":
        whole = _whole(module, path, layers)
        # Two entries name the same layers, and each one passes over the other's.
        if (_inside(layer, path, layers) < whole) != (module.part == "blocks"):
            return None
        if module.part == "rest":
            return layer - whole
    i, other = divmod(layer - module.offset, module.step)
    return i if not other and i >= 0 and _has(module, i, layer) else None


def _whole(module: Module, path: str, layers: int | None) -> int:
    """Return the number of layers in whole blocks."""
    if layers is None:
        raise ValueError(
            Message(
                f"'{path}' belongs to a model scanned in blocks of {module.step} "
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
    """Yield the reasons, if any, against reading a table both ways."""
    seen: dict[tuple[object, ...], str] = {}
    for path, x in table.items():
        sides = [set(re.findall(r"\{[^}]*\}?|\}", side)) for side in (path, x.name)]
        if sides[0] != sides[1] or sides[0] - {"{i}", "{e}"}:
            yield (
                f"'{path}' and '{x.name}': expected the placeholders {{i}} (layer) and "
                "{e} (expert), the same on both sides"
            )
        # Several JAX paths may share a name: by block, or as halves of one parameter.
        key = (slashed(x.name), x.offset, x.places, x.part, x.half)
        if key in seen:
            yield f"'{seen[key]}' and '{path}' are both '{x.name}'"
        seen[key] = path
