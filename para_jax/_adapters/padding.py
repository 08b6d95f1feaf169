"""Adapters filled up with zeros to the shapes of others.

Traceable under `jit`.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter


def pad(
    adapters: Mapping[str, Adapter], *, like: Mapping[str, Adapter]
) -> dict[str, Adapter]:
    """Fill adapters up with zeros to the shapes of `like`: the updates stay equal.

    So a program compiled for the parent runs all its children.

    Example:
      >>> child = para_jax.compress(adapters, para_jax.Threshold(7)).adapters
      >>> {path: x.rank for path, x in child.items()}
      {'up': 1}
      >>> {p: x.rank for p, x in para_jax.pad(child, like=adapters).items()}
      {'down': 2, 'up': 4}

    Args:
      adapters: A child, its stacks as in `like`.
      like: The parent, or anything with the shapes to fill up to. A path missing in
        `adapters` gets factors of zeros.

    Raises:
      ValueError: if an adapter is not in `like`, or does not fit into it.
    """
    if unknown := sorted(adapters.keys() - like.keys()):
        raise ValueError(f"'{unknown[0]}' is not a module of the model to fill up to.")
    return {path: _grown(path, adapters.get(path), x) for path, x in like.items()}


def _grown(path: str, adapter: Adapter | None, like: Adapter) -> Adapter:
    if adapter is None:
        return Adapter(
            a=np.zeros(like.a.shape, like.a.dtype),
            b=np.zeros(like.b.shape, like.b.dtype),
        )
    more = like.rank - adapter.rank
    shapes = (adapter.stack, adapter.inputs, adapter.outputs)
    if more < 0 or shapes != (like.stack, like.inputs, like.outputs):
        raise ValueError(
            f"'{path}': a {list(adapter.a.shape)} and b {list(adapter.b.shape)} do not "
            f"fit into a {list(like.a.shape)} and b {list(like.b.shape)}."
        )
    return to_rank(adapter, like.rank)


def to_rank(adapter: Adapter, rank: int) -> Adapter:
    """Return an equal update at a larger rank: zeros fill the new columns and rows."""
    more = rank - adapter.rank
    if not more:
        return adapter
    # NumPy stays NumPy: an update of zeros costs no transfer to a device.
    xp = np if isinstance(adapter.a, np.ndarray) else jnp
    still = [(0, 0)] * len(adapter.stack)
    return dataclasses.replace(
        adapter,
        a=xp.pad(adapter.a, [*still, (0, 0), (0, more)]),
        b=xp.pad(adapter.b, [*still, (0, more), (0, 0)]),
    )
