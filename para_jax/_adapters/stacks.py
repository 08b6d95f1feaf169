"""Stacks of kernels: scanned layers or experts, joined along leading axes.

A stack is one adapter with leading axes; its members are one adapter a kernel.

Traceable under `jit`: shapes and paths are static.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from para_jax._adapters.adapter import Adapter, Adapters, Array


class Kernel(NamedTuple):
    """One kernel of a stack, or the only one of a module without a stack.

    Attributes:
      path: The path of its module.
      index: Its index in the stack, `()` without one.
    """

    path: str
    index: tuple[int, ...]

    @property
    def name(self) -> str:
        """The path of the kernel by itself: the index becomes part of the path."""
        return member(self.path, self.index)


def kernels(stacks: Mapping[str, tuple[int, ...]]) -> Iterator[Kernel]:
    """Yield every kernel of some stacks, in their order.

    Args:
      stacks: The shape of each stack by path, `()` for a module without one.
    """
    for path, stack in stacks.items():
        for index in itertools.product(*map(range, stack)):
            yield Kernel(path, index)


def member(path: str, index: tuple[int, ...]) -> str:
    """Return the path of one kernel of a stack."""
    return "/".join([path, *map(str, index)])


def unstack(adapters: Adapters) -> dict[str, Adapter]:
    """Split stacks into kernels: the stack's index becomes part of the path.

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
    for kernel in kernels({path: x.stack for path, x in adapters.items()}):
        path, index = kernel
        name, adapter = kernel.name, adapters[path]
        # `mlp/0` may be a module of its own beside the stack `mlp`: never overwrite it.
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
    """Convert values of stacks to values of their kernels.

    Arrays `[*stack, ...]` are indexed, anything else is the same for all.
    """
    stacks = {x: adapters[x].stack if x in adapters else () for x in values}
    return {
        kernel.name: value[kernel.index] if isinstance(value, Array) else value
        for kernel in kernels(stacks)
        for value in [values[kernel.path]]
    }


def stack(
    adapters: Adapters, stacks: Mapping[str, tuple[int, ...]]
) -> dict[str, Adapter]:
    """Join the members of each stack again, the inverse of `unstack`.

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
    # Popped below, so that a member of two stacks is missing in the second.
    rest = dict(adapters)
    result: dict[str, Adapter] = {}
    for path, shape in stacks.items():
        names = [kernel.name for kernel in kernels({path: shape})]
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
    # Host memory stays host memory: a checkpoint may be larger than a device.
    xp = np if all(isinstance(x, np.ndarray) for x in arrays) else jax.numpy
    return xp.stack(arrays).reshape(*shape, *arrays[0].shape)
