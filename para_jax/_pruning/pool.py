"""The pool of all singular values: which component of which module each one is.

The paper's set E. Everything here is known from shapes alone, so it is the same
under `jit` and outside: `N` components in all, `M` modules (kernels), in the
model's order.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from para_jax._adapters.adapter import ordered
from para_jax._pruning.decompose import Spectra


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The layout of the pool.

    Attributes:
      shapes: The shape `[*stack, k]` of each path's singular values, in order.
      module: The module of each component, `[N]`, ascending.
      index: Its position among its module's components, `[N]`.
      cost: The parameters that it takes, `m + n`, `[N]`.
      itemsize: The bytes of one parameter, `[N]`.
      rank: The rank `r` of its module's factors, `[N]`.
      total_rank: The ranks that budgets count, the paper's B_init.
    """

    shapes: Mapping[str, tuple[int, ...]]
    module: np.ndarray
    index: np.ndarray
    cost: np.ndarray
    itemsize: np.ndarray
    rank: np.ndarray
    total_rank: int

    @property
    def modules(self) -> int:
        return int(self.module[-1]) + 1

    @property
    def sizes(self) -> np.ndarray:
        """The number of components of each module, `[M]`."""
        return np.bincount(self.module)

    @property
    def start(self) -> np.ndarray:
        """Where each module's components begin, `[M]`."""
        return np.cumsum(self.sizes) - self.sizes

    def gather(self, values: Mapping[str, Any], xp: Any) -> Any:
        """Returns the values `[*stack, k]` of all paths as one array `[N]`."""
        return xp.concatenate([xp.reshape(values[path], -1) for path in self.shapes])

    def scatter(self, pooled: Any) -> dict[str, Any]:
        """Returns what `gather` joined, by path: its inverse."""
        result, start = {}, 0
        for path, shape in self.shapes.items():
            size = math.prod(shape)
            result[path] = pooled[start : start + size].reshape(shape)
            start += size
        return result


def pool(spectra: Spectra) -> Pool:
    """Returns the layout of the singular values of `spectra`.

    Raises:
      ValueError: if there are none.
    """
    if not spectra:
        raise ValueError("There is no adapter to choose from: got an empty mapping.")
    paths = ordered(spectra)
    spectrum = [spectra[path] for path in paths]
    rows = [math.prod(x.s.shape[:-1]) for x in spectrum]
    sizes = np.repeat([x.s.shape[-1] for x in spectrum], rows)

    def each(values: list[int]) -> np.ndarray:
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
