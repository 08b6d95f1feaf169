"""Adapters of equal shapes, as one array, and as pieces for little memory.

A model has hundreds of adapters and a handful of shapes. A program that names each
adapter compiles and starts slowly; one that names each shape does not.

Within a program every step joins and splits in one order, that of `groups`. The
compiler drops a join of neighbours that were split before, so that of a chain of steps
only the first join and the last split are left.

Groups depend on shapes alone. `join` and `split` are traceable under `jit`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from para_jax._adapters.adapter import Adapter
from para_jax._adapters.stacks import Kernel, kernels
from para_jax.linalg import sharding, threads
from para_jax.linalg.divide import divide

# The most that a batch holds, in parameters of adapters: 32 MB in float64. Larger ones
# are not faster, smaller ones take more calls.
_BATCH = 2**22

# The least worth a piece of its own in host memory: a hundred calls of NumPy.
_SHARE = 2**18

Progress = Callable[[Sequence[Any]], Iterable[Any]]
"""A wrapper for a loop over batches that shows its progress, such as `tqdm.tqdm`."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Paths with arrays `[*stack, ...]` to join to one `[L, ...]`.

    Works on traced, device and NumPy arrays; NumPy arrays stay NumPy.

    Attributes:
      stacks: The stack shape of each path.
      apart: Whether it is one path with arrays that keep their own stack axes. To join
        a stack would only copy it; on a mesh of devices, move it.
    """

    stacks: Mapping[str, tuple[int, ...]]
    apart: bool = False

    @property
    def rows(self) -> int:
        """The number of kernels, `L`."""
        return sum(math.prod(stack) for stack in self.stacks.values())

    def members(self) -> list[Kernel]:
        """Return the kernel of each row: its path, and its index in the stack."""
        return self._members

    @functools.cached_property
    def _members(self) -> list[Kernel]:
        return list(kernels(self.stacks))

    def join(self, values: Mapping[str, Any], rows: slice = slice(None)) -> Any:
        """Return `rows` of the values of this group's paths, joined along one axis."""
        if self.apart:
            return values[next(iter(self.stacks))]
        start, stop, _ = rows.indices(self.rows)
        parts, first = [], 0
        for path, stack in self.stacks.items():
            count = math.prod(stack)
            inside = range(count)[max(start - first, 0) : max(stop - first, 0)]
            first += count
            if not inside:
                continue
            part = values[path].reshape(-1, *values[path].shape[len(stack) :])
            whole = len(inside) == count  # A slice of a jax.Array would be a copy.
            parts.append(part if whole else part[inside.start : inside.stop])
        if len(parts) == 1:
            return parts[0]
        # On a device only if some array is there already: NumPy needs no transfer.
        on_host = all(isinstance(x, np.ndarray) for x in parts)
        return (np if on_host else jnp).concatenate(parts)

    def split(self, joined: Any) -> dict[str, Any]:
        """Return the rows of each path in its own stack's shape: `join`'s inverse."""
        if self.apart:
            return {next(iter(self.stacks)): joined}
        shape = joined.shape[1:]
        pairs = zip(self.stacks.items(), _divided(joined, self.sizes), strict=True)
        return {path: x.reshape(*stack, *shape) for (path, stack), x in pairs}

    @property
    def sizes(self) -> list[int]:
        """The number of kernels of each path."""
        return [math.prod(stack) for stack in self.stacks.values()]


def _divided(x: Any, sizes: Sequence[int]) -> Sequence[Any]:
    """Return an array in parts along its first axis; NumPy arrays as views."""
    if isinstance(x, jax.core.Tracer):
        # One operation for all parts: hundreds would take long to trace. By whole rows,
        # else XLA does not see that a join of neighbours is the array again.
        return lax.split(x, sizes)
    if isinstance(x, jax.Array):  # By a program of its own, with nothing to drop.
        return divide([x], [sizes])[0]
    ends = np.cumsum(sizes)
    return [x[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def together(parts: Iterable[Group]) -> Group:
    """Return all rows of some groups as one, in their order."""
    return Group({path: s for group in parts for path, s in group.stacks.items()})


def groups(adapters: Mapping[str, Adapter]) -> list[Group]:
    """Group paths by equal `m`, `n`, `r` and dtype.

    Stacks that are on devices are groups of their own.
    """
    found: dict[tuple[object, ...], dict[str, tuple[int, ...]]] = {}
    apart = []
    for path, x in adapters.items():
        stacked = isinstance(x.a, jax.Array) and x.modules > 1
        if stacked or sharding.mesh_of(x) is not None:
            apart.append(Group({path: x.stack}, apart=True))
            continue
        key = (x.inputs, x.outputs, x.rank, x.a.dtype, x.b.dtype)
        found.setdefault(key, {})[path] = x.stack
    return [*map(Group, found.values()), *apart]


def pieces(
    group: Group, adapters: Mapping[str, Adapter], most: int | None = None
) -> list[slice]:
    """Return the rows of a group in pieces, none of more than `most` parameters.

    No more than a batch, by default. All but the last have the same length, so they
    share a program. It is a power of two, since the number of layers often has one as a
    factor. A stack that is on devices is one piece.
    """
    if group.apart:
        return [slice(0, group.rows)]
    step = 1 << max((most or _BATCH) // _row(group, adapters), 1).bit_length() - 1
    starts = range(0, group.rows, step)
    return [slice(i, min(i + step, group.rows)) for i in starts]


def all_pieces(
    adapters: Mapping[str, Adapter], most: int | None = None
) -> list[tuple[Group, slice]]:
    """Return the pieces of all groups: some rows of a group each."""
    return [
        (group, rows)
        for group in groups(adapters)
        for rows in pieces(group, adapters, most)
    ]


def workers(adapters: Mapping[str, Adapter]) -> int:
    """Return how many threads are worth it in host memory: one a batch of parameters.

    Two threads with less to do wait for the interpreter for longer than they compute.
    """
    whole = sum(x.parameters for x in adapters.values())
    return max(min(whole // _BATCH, threads.workers()), 1)


def share(adapters: Mapping[str, Adapter]) -> int:
    """Return the most parameters of a piece, for each worker to have some pieces."""
    whole = sum(x.parameters for x in adapters.values())
    return min(max(whole // (4 * workers(adapters)), _SHARE), _BATCH)


def batches(
    found: Sequence[Group], adapters: Mapping[str, Adapter], most: int | None = None
) -> list[list[tuple[int, slice]]]:
    """Return the pieces of all groups, in batches for little memory.

    A piece is a group's number and some of its rows. A small model is one batch.
    """
    result: list[list[tuple[int, slice]]] = []
    room = 0
    for i, group in enumerate(found):
        for rows in pieces(group, adapters, most):
            size = (rows.stop - rows.start) * _row(group, adapters)
            # A stack on devices is a program of its own, which never moves it.
            if size > room or group.apart:
                result.append([])
                room = most or _BATCH
            result[-1].append((i, rows))
            room -= size
    return result


def _row(group: Group, adapters: Mapping[str, Adapter]) -> int:
    """Return the parameters of one kernel's adapter."""
    # Any member: a group has one shape.
    one = adapters[next(iter(group.stacks))]
    return one.rank * (one.inputs + one.outputs)


def joined(group: Group, values: Mapping[str, Any], rows: slice = slice(None)) -> Any:
    """Return one Adapter or Spectrum for the whole group, or for some rows of it."""
    members = [values[path] for path in group.stacks]
    leaves = zip(*(jax.tree.leaves(x) for x in members), strict=True)
    joined = [group.join(dict(zip(group.stacks, x, strict=True)), rows) for x in leaves]
    return jax.tree.unflatten(jax.tree.structure(members[0]), joined)
