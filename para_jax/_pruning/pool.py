"""The pool of all singular values: the components of every module in one array.

The paper's set E. A pool depends on shapes alone, so it is the same under `jit` and
outside: `N` components in all, `M` modules (kernels) in the model's order, and at most
`K` components a module.

Runs on the host, also while a program is traced; `gather` and `scatter` take traced
arrays too.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from para_jax._adapters.adapter import ordered
from para_jax._adapters.stacks import Kernel, kernels
from para_jax._pruning.decompose import Spectra


class Places(NamedTuple):
    """Components of the pool in rows of equal length, with gaps.

    Attributes:
      place: The component at each place; in a gap, any.
      exists: Whether a place has a component, so is not a gap.
    """

    place: np.ndarray
    exists: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The order of all components of a model, and their prices.

    Attributes:
      shapes: The shape `[*stack, k]` of each path's singular values, in order.
      module: The module of each component, `[N]`, ascending.
      index: Its position among its module's components, `[N]`.
      cost: Its number of parameters, `m + n`, `[N]`.
      itemsize: The bytes of one parameter, `[N]`.
      rank: The rank `r` of its module's factors, `[N]`.
      total_rank: The ranks that budgets count, the paper's B_init.

    Example:
      >>> found = para_jax.pool(para_jax.decompose(adapters))
      >>> type(found) is para_jax.Pool, found.modules, found.total_rank
      (True, 2, 6)
      >>> found.module.tolist(), found.index.tolist(), found.cost.tolist()
      ([0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 2, 3], [12, 12, 12, 12, 12, 12])
    """

    shapes: Mapping[str, tuple[int, ...]]
    module: np.ndarray
    index: np.ndarray
    cost: np.ndarray
    itemsize: np.ndarray
    rank: np.ndarray
    total_rank: int

    # Computed once: every policy of a sweep asks for them again.
    @functools.cached_property
    def modules(self) -> int:
        return int(self.module[-1]) + 1

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """The number of components of each module, `[M]`."""
        return np.bincount(self.module)

    @functools.cached_property
    def start(self) -> np.ndarray:
        """The first component of each module, `[M]`."""
        return np.cumsum(self.sizes) - self.sizes

    @functools.cached_property
    def first(self) -> np.ndarray:
        """The first component of each one's module, `[N]`: its largest value."""
        return self.start[self.module]

    @functools.cached_property
    def kernels(self) -> list[Kernel]:
        """The kernel of each module, `M` of them."""
        return list(kernels({path: shape[:-1] for path, shape in self.shapes.items()}))

    @functools.cached_property
    def rows(self) -> Places:
        """The components of each module in a row, `[M, K]`."""
        column = np.arange(self.sizes.max())
        exists = column < self.sizes[:, None]
        return Places(self.start[:, None] + np.where(exists, column, 0), exists)

    def blocks(self, q: int) -> Places:
        """Return the components of each one's block of `q` neighbours, `[N, q]`.

        A module's last block is shorter if `q` does not divide its size.
        """
        index = (self.index // q * q)[:, None] + np.arange(q)
        exists = index < self.sizes[self.module][:, None]
        return Places(self.first[:, None] + np.where(exists, index, 0), exists)

    def gather(self, values: Mapping[str, Any], xp: Any) -> Any:
        """Return the values `[*stack, k]` of all paths as one array `[N]`."""
        return xp.concatenate([xp.reshape(values[path], -1) for path in self.shapes])

    def scatter(self, pooled: Any) -> dict[str, Any]:
        """Return pooled values `[N]` by path, the inverse of `gather`."""
        result, start = {}, 0
        for path, shape in self.shapes.items():
            size = math.prod(shape)
            result[path] = pooled[start : start + size].reshape(shape)
            start += size
        return result


def pool(spectra: Spectra) -> Pool:
    """Return the pool of the singular values of `spectra`.

    Example:
      >>> found = para_jax.pool(para_jax.decompose(adapters))
      >>> s = {"down": np.array([6, 0.5]), "up": np.array([8.0, 4, 2, 1])}
      >>> found.gather(s, np).tolist()
      [6.0, 0.5, 8.0, 4.0, 2.0, 1.0]
      >>> {path: x.tolist() for path, x in found.scatter(found.index).items()}
      {'down': [0, 1], 'up': [0, 1, 2, 3]}

    Args:
      spectra: From `decompose` or `spectra_of`; only shapes and dtypes are read.

    Raises:
      ValueError: if there are none.
    """
    if not spectra:
        raise ValueError("There is no adapter to choose from: got an empty mapping.")
    # Ties go to the earlier module, so the order has to be the model's, not the dict's.
    paths = ordered(spectra)
    spectrum = [spectra[path] for path in paths]
    rows = [math.prod(x.s.shape[:-1]) for x in spectrum]
    sizes = np.repeat([x.s.shape[-1] for x in spectrum], rows)

    def each(values: list[int]) -> np.ndarray:
        # int64, since the bytes of a large model do not fit 32 bits.
        return np.repeat(np.repeat(np.asarray(values, np.int64), rows), sizes)

    return Pool(
        shapes={path: x.s.shape for path, x in zip(paths, spectrum, strict=True)},
        module=np.repeat(np.arange(len(sizes)), sizes),
        index=np.concatenate([np.arange(size) for size in sizes]),
        cost=each([sum(x.shape) for x in spectrum]),
        itemsize=each([np.dtype(x.dtype).itemsize for x in spectrum]),
        rank=each([x.rank for x in spectrum]),
        total_rank=sum(
            x.nominal * count for x, count in zip(spectrum, rows, strict=True)
        ),
    )
