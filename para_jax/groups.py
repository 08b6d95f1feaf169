"""Adapters of equal shapes, as one array.

A model has hundreds of adapters and a handful of shapes. A program that names each
adapter compiles and starts slowly; one that names each shape does not.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from para_jax.adapters import Adapter


@dataclasses.dataclass(frozen=True)
class Group:
    """Some paths, whose arrays `[*stack, ...]` can be joined to one `[L, ...]`.

    Works on traced, device and NumPy arrays; what is all NumPy stays NumPy.

    Attributes:
      stacks: The stack shape of each path.
    """

    stacks: Mapping[str, tuple[int, ...]]

    def join(self, values: Mapping[str, Any]) -> Any:
        """Returns `values` of this group's paths, joined along one leading axis."""
        rows = [
            values[path].reshape(-1, *values[path].shape[len(stack) :])
            for path, stack in self.stacks.items()
        ]
        if len(rows) == 1:
            return rows[0]
        on_host = all(isinstance(x, np.ndarray) for x in rows)
        return (np if on_host else jnp).concatenate(rows)

    def split(self, joined: Any) -> dict[str, Any]:
        """Returns the rows of each path in its own stack's shape: `join`'s inverse."""
        result, start = {}, 0
        for path, stack in self.stacks.items():
            end = start + math.prod(stack)
            result[path] = joined[start:end].reshape(*stack, *joined.shape[1:])
            start = end
        return result


def groups(adapters: Mapping[str, Adapter]) -> list[Group]:
    """Returns the paths that agree in `m`, `n`, `r` and dtype, group by group."""
    found: dict[tuple[object, ...], dict[str, tuple[int, ...]]] = {}
    for path, x in adapters.items():
        key = (x.inputs, x.outputs, x.rank, x.a.dtype, x.b.dtype)
        found.setdefault(key, {})[path] = x.stack
    return [Group(stacks) for stacks in found.values()]
