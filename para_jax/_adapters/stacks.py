"""Stacks of kernels: scanned layers or experts, joined along leading axes.

A stack is one adapter with leading axes; its members are one adapter a kernel.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from para_jax._adapters.adapter import Adapter, Adapters, Array


def unstack(adapters: Adapters) -> dict[str, Adapter]:
    """Returns one adapter a kernel: the stack's index becomes part of the path.

    `{"mlp": Adapter(a=[2, m, r], ...)}` becomes `{"mlp/0": ..., "mlp/1": ...}`.
    Adapters without a stack stay as they are. The inverse is `stack`.

    Example:
      >>> scanned = {"mlp": para_jax.Adapter(np.ones((2, 5, 3)), np.ones((2, 3, 7)))}
      >>> {path: x.a.shape for path, x in para_jax.unstack(scanned).items()}
      {'mlp/0': (5, 3), 'mlp/1': (5, 3)}

    Raises:
      ValueError: if an unstacked path is already taken.
    """
    result: dict[str, Adapter] = {}
    for path, adapter in adapters.items():
        for index in np.ndindex(adapter.stack):
            name = member(path, index)
            if name in result or (index and name in adapters):
                raise ValueError(
                    f"Cannot unstack '{path}': '{name}' is the path of another "
                    "adapter. Rename one of them."
                )
            result[name] = dataclasses.replace(
                adapter, a=adapter.a[index], b=adapter.b[index]
            )
    return result


def by_member(values: Mapping[str, Any], adapters: Adapters) -> dict[str, Any]:
    """Returns what belongs to each stack as what belongs to each of its kernels.

    Arrays `[*stack, ...]` are indexed, anything else is the same for all.
    """
    return {
        member(path, index): value[index] if isinstance(value, Array) else value
        for path, value in values.items()
        for index in np.ndindex(adapters[path].stack if path in adapters else ())
    }


def stack(
    adapters: Adapters, stacks: Mapping[str, tuple[int, ...]]
) -> dict[str, Adapter]:
    """Returns `adapters` with the members of each stack joined again.

    The members must have equal shapes and scales: pad them first if they do not.

    Example:
      >>> kernels = {"mlp/0": adapter(5, 7, 8, 4), "mlp/1": adapter(5, 7, 2, 1)}
      >>> para_jax.stack(kernels, {"mlp": (2,)})["mlp"].b.shape
      (2, 2, 7)

    Args:
      adapters: One adapter a kernel, as `unstack` gives them.
      stacks: The shape of each stack by its path, such as `{"mlp": (2,)}`.

    Raises:
      ValueError: if a member is missing or differs in shape or scale.
    """
    rest = dict(adapters)
    result: dict[str, Adapter] = {}
    for path, shape in stacks.items():
        names = [member(path, index) for index in np.ndindex(shape)]
        if missing := [name for name in names if name not in rest]:
            raise ValueError(f"Cannot stack '{path}': '{missing[0]}' is missing.")
        members = [rest.pop(name) for name in names]
        forms = {(x.a.shape, x.b.shape, x.scale, x.nominal) for x in members}
        if len(forms) > 1:
            raise ValueError(
                f"Cannot stack '{path}': its members differ in shape or scale "
                f"{sorted(map(str, forms))[:2]}. Pad them to one rank first."
            )
        result[path] = dataclasses.replace(
            members[0],
            a=_join([x.a for x in members], shape),
            b=_join([x.b for x in members], shape),
        )
    return result | rest


def _join(arrays: Sequence[Any], shape: tuple[int, ...]) -> Any:
    xp = np if all(isinstance(x, np.ndarray) for x in arrays) else jax.numpy
    return xp.stack(arrays).reshape(*shape, *arrays[0].shape)


def member(path: str, index: tuple[int, ...]) -> str:
    """Returns the path of one kernel of a stack."""
    return "/".join([path, *map(str, index)])
