"""Children of parents that are on a mesh of devices, placed as these are. Host.

The rank axis is on no mesh axis: its length is what a policy makes of it. A stack that
comes apart into its kernels is on no mesh axis either. The other axes are divided as in
the parent.
"""

import functools
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ScalarLike

from para_jax._adapters.adapter import Adapter
from para_jax._adapters.stacks import member


def cut(
    path: str,
    packed: Adapter,
    parent: Adapter,
    ranks: np.ndarray,
    form: Literal["padded", "ragged"],
) -> dict[str, Adapter]:
    """Returns what a stack of kernels becomes: as `para_jax.repack`, for one path.

    Args:
      path: The path.
      packed: The child, its components in the first columns: more than it needs.
      parent: The parent, of jax.Arrays.
      ranks: The rank of each kernel, `[*stack]`.
      form: One stack, or a kernel a path.
    """
    if not (rank := int(ranks.max())):
        return {}
    stacked = len(parent.stack) if form == "padded" else 0
    a = _put(packed.a[..., :rank], parent.a, stacked=stacked, rank_axis=-1)
    b = _put(packed.b[..., :rank, :], parent.b, stacked=stacked, rank_axis=-2)
    if form == "padded":
        return {path: Adapter(a=a, b=b)}
    return {
        member(path, index): _kernel(a, b, i, rank=rank)
        for i, index in enumerate(np.ndindex(ranks.shape))
        if (rank := int(ranks[index]))
    }


@functools.partial(jax.jit, static_argnames="rank")
def _kernel(a: Array, b: Array, i: ScalarLike, *, rank: int) -> Adapter:
    a, b = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
    a, b = (jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in (a, b))
    return Adapter(a=a[:, :rank], b=b[:rank])


def _put(x: Any, parent: Any, *, stacked: int, rank_axis: int) -> Array:
    """Returns a factor divided as the parent's is, by its first `stacked` axes too."""
    place = parent.sharding
    spec = [*place.spec, *[None] * (parent.ndim - len(place.spec))]
    spec[stacked:-2] = [None] * (parent.ndim - 2 - stacked)
    spec[rank_axis] = None
    return jax.device_put(x, NamedSharding(place.mesh, P(*spec)))
