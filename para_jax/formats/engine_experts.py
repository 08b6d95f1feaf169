"""The experts of a mixture that an engine reads all together. Host."""

import re
from collections.abc import Mapping

from para_jax.adapters import ordered
from para_jax.formats.profiles import Shape

_EXPERT = re.compile(r"(?P<owner>(?:.*/)?experts)/(?P<index>\d+)/(?P<name>[^/]+)")
# Gate, up and down: the first two widen, the last narrows by as much.
_NAMES = (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj"))


def missing(
    shapes: Mapping[str, Shape], absent: Mapping[str, tuple[int, int]]
) -> dict[str, Shape]:
    """Find the modules that are missing beside those of one layer's experts.

    Args:
      shapes: The shapes of all modules that are there.
      absent: `(m, n)` of those that kept nothing.

    Returns:
      Their shapes: of the rank that the same module has in the layer's other experts,
      or 1.
    """
    found = [x for path in ordered(shapes) if (x := _EXPERT.fullmatch(path))]
    others = [x for path in absent if (x := _EXPERT.fullmatch(path))]
    count = 1 + max((int(x["index"]) for x in [*found, *others]), default=-1)
    result: dict[str, Shape] = {}
    for owner in dict.fromkeys(x["owner"] for x in found):
        inside = {x["name"]: x[0] for x in found if x["owner"] == owner}
        for name in next((x for x in _NAMES if inside.keys() <= set(x)), ()):
            shape = _shape(name, {x: shapes[path] for x, path in inside.items()})
            for path in (f"{owner}/{i}/{name}" for i in range(count)):
                if path not in shapes:
                    result[path] = shape
    return result


def _shape(name: str, inside: Mapping[str, Shape]) -> Shape:
    if name in inside:
        return inside[name]
    other, (m, _, n) = next(iter(inside.items()))
    narrows = {x[-1] for x in _NAMES}
    return (m, 1, n) if (name in narrows) == (other in narrows) else (n, 1, m)
