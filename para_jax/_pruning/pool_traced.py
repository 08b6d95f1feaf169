"""Values of a pool's components in traced programs: joined by shape, then put in order.

A pool lists components in the model's order, in which shapes alternate. To join a
model's hundreds of singular values in that order would undo the order of `groups`, in
which `decompose` split them and `repack` joins their masks. So they are joined by shape
here too, and one gather brings all components into the pool's order.

Traceable under `jit`; `Pool.gather` and `Pool.scatter` are the counterparts for NumPy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from para_jax._pruning.batches import Group
from para_jax._pruning.decompose import Spectra
from para_jax._pruning.pool import Pool


def by_shape(spectra: Spectra) -> list[Group]:
    """Return the paths of equal shapes and ranks, in the order of `decompose`."""
    found: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
    for path, x in spectra.items():
        key = (x.rank, x.s.shape[-1], x.shape, x.dtype)
        found.setdefault(key, {})[path] = x.s.shape[:-1]
    return [Group(x) for _, x in sorted(found.items(), key=lambda x: x[0][0])]


def gather(pool: Pool, groups: Sequence[Group], values: Mapping[str, Any]) -> Array:
    """Return the values `[*stack, k]` of all paths as one array `[N]`."""
    joined = jnp.concatenate([group.join(values).reshape(-1) for group in groups])
    return joined[np.argsort(_places(pool, groups))]


def scatter(pool: Pool, groups: Sequence[Group], pooled: Array) -> dict[str, Array]:
    """Return pooled values `[N]` by path, the inverse of `gather`."""
    joined = pooled[_places(pool, groups)]
    result, start = {}, 0
    for group in groups:
        k = pool.shapes[next(iter(group.stacks))][-1]
        rows = joined[start : start + group.rows * k].reshape(group.rows, k)
        # Otherwise XLA splits the gather, and cannot join what it then has.
        result |= group.split(lax.optimization_barrier(rows))
        start += group.rows * k
    return result


def _places(pool: Pool, groups: Sequence[Group]) -> np.ndarray:
    """Return the component of the pool at each place of the joined groups, `[N]`."""
    index = pool.scatter(np.arange(len(pool.module)))
    paths = [path for group in groups for path in group.stacks]
    return np.concatenate([index[path].reshape(-1) for path in paths])
