"""Children of parents on a mesh of devices, placed as these are.

The rank axis is never sharded, since its length depends on the policy. Nor is the axis
of a stack that is cut into its kernels. The other axes are divided as in the parent.

Runs on the host.
"""

import functools
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxtyping import Array, ScalarLike

from para_jax._adapters.adapter import Adapter
from para_jax._adapters.stacks import kernels


def cut(
    path: str,
    packed: Adapter,
    parent: Adapter,
    ranks: np.ndarray,
    form: Literal["padded", "ragged"],
) -> dict[str, Adapter]:
    """Cut a stack of kernels to its ranks, as `para_jax.repack` does, for one path.

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
        kernel.name: _kernel(a, b, i, rank=rank)
        for i, kernel in enumerate(kernels({path: ranks.shape}))
        if (rank := int(ranks[kernel.index]))
    }


# The index is traced: one program a rank serves all kernels of a stack.
@functools.partial(jax.jit, static_argnames="rank")
def _kernel(a: Array, b: Array, i: ScalarLike, *, rank: int) -> Adapter:
    a, b = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
    a, b = (jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in (a, b))
    return Adapter(a=a[:, :rank], b=b[:rank])


def _put(x: Any, parent: Any, *, stacked: int, rank_axis: int) -> Array:
    """Return a factor divided as the parent's is, by its first `stacked` axes too."""
    place = parent.sharding
    # A PartitionSpec may leave out the last axes.
    spec = [*place.spec, *[None] * (parent.ndim - len(place.spec))]
    spec[stacked:-2] = [None] * (parent.ndim - 2 - stacked)
    spec[rank_axis] = None
    return jax.device_put(x, NamedSharding(place.mesh, P(*spec)))
