"""Take one adapter out of a tree by the place of its halves, and put it back in.

`take`, `whole` and `put` are traceable under `jit`, so that a training step can
compress the state of a model. Checks of shapes run on the host.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter, Array, folded
from para_jax._adapters.padding import pad, to_rank
from para_jax._adapters.precision import wide
from para_jax._adapters.stacks import member, stack
from para_jax._pruning.decompose import decompose
from para_jax._pruning.repack_traced import pack
from para_jax.layouts.axes import Axes, Shape, matrices, stored
from para_jax.layouts.slots import Slot, filled, view

Key = tuple[str, ...]
"""The path of a leaf, one string per level."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """The place of an adapter's two halves in a tree, and the roles of their axes.

    Attributes:
      path: The adapter's name: the module's slash-joined path.
      module: The module for which the library looks up a rank. Pairs of one module
        have one rank.
      a: The key of the input-side factor.
      b: The key of the output-side factor.
      axes: The roles of their axes.
      shapes: Their stored shapes.
      parts: For a fused projection, the names of the projections along the first
        output axis, such as `("k", "v")`: each is an adapter of its own.
      alpha: The key of a leaf that holds alpha, if the tree has one.
      scale: The scale, if the tree holds it otherwise.
      slot: The place of the pair in leaves that hold several; `axes` and `shapes` are
        those of this one.
    """

    path: str
    module: str
    a: Key
    b: Key
    axes: Axes
    shapes: tuple[Shape, Shape]
    parts: tuple[str, ...] = ()
    alpha: Key = ()
    scale: float | None = None
    slot: Slot | None = None

    @property
    def rank(self) -> int:
        return self.shapes[0][self.axes.a.index("r")]

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the pair's adapters."""
        return tuple(f"{self.path}/{x}" for x in self.parts) or (self.path,)

    @property
    def stack(self) -> Shape:
        """The shape of the stack."""
        sizes = zip(self.axes.a, self.shapes[0], strict=True)
        return tuple(n for role, n in sizes if role == "L")


def members(pair: Pair) -> list[str]:
    """List the possible names of a pair's adapters, and of each of their kernels."""
    kernels = [member(name, i) for name in pair.names for i in np.ndindex(pair.stack)]
    return [*pair.names, *kernels]


def take(pair: Pair, a: Array, b: Array, scale: float) -> dict[str, Adapter]:
    """Return the adapters of a pair; those of a fused pair share `a`."""
    if pair.slot is not None:
        a, b = view(pair.slot, a, b)
    a, b = matrices(pair.axes, a, b)
    width = b.shape[-1] // len(pair.names)
    return {
        name: Adapter(a=a, b=b[..., i * width : (i + 1) * width], scale=scale)
        for i, name in enumerate(pair.names)
    }


def whole(pair: Pair, child: Mapping[str, Adapter], dtype: Any) -> Adapter:
    """Return the one adapter of scale 1 for a pair's place in the tree.

    The kernels of a stack are padded to the largest of their ranks. A module that the
    child lacks gets one rank of zeros in `dtype`, since the tree has a place for it.
    The parts of a fused projection are joined side by side, or, if that exceeds the
    parent's rank, as the same product at the parent's rank.
    """
    parts = [_stacked(pair, name, child) for name in pair.names]
    found = [x for x in parts if x is not None]
    if not found:
        return _zeros(pair, dtype)
    if not pair.parts:
        return found[0]
    xp = _module(found)
    joined = Adapter(
        a=xp.concatenate([x.a for x in found], axis=-1),
        b=xp.concatenate(_block_rows(parts, xp), axis=-2),
    )
    return joined if joined.rank <= pair.rank else _at_rank(joined, pair.rank)


def put(pair: Pair, adapter: Adapter, leaves: Mapping[Key, Any]) -> dict[Key, Array]:
    """Return the leaves of an adapter in the stored form of the tree.

    Args:
      pair: Its place.
      adapter: The adapter, of scale 1.
      leaves: Those of the parent's tree, whose other slots stay.

    Raises:
      ValueError: if a slot has no room for the rank.
    """
    a, b = stored(pair.axes, adapter.a, adapter.b, pair.shapes)
    if pair.slot is not None:
        return filled(pair.slot, pair.path, (pair.a, pair.b), (a, b), leaves)
    return {pair.a: a, pair.b: b}


def _stacked(pair: Pair, name: str, child: Mapping[str, Adapter]) -> Adapter | None:
    """Return an adapter with the stack of its pair; None if the child has no kernel."""
    if name in child:
        return folded(child[name])
    names = [member(name, index) for index in np.ndindex(pair.stack)]
    found = {x: folded(child[x]) for x in names if x in child}
    if not found:
        return None
    rank = max(x.rank for x in found.values())
    # Kernels that kept nothing are missing in a ragged child: `pad` makes their zeros.
    like = to_rank(next(iter(found.values())), rank)
    return stack(pad(found, like=dict.fromkeys(names, like)), {name: pair.stack})[name]


def _block_rows(parts: Sequence[Adapter | None], xp: Any) -> list[Any]:
    """Return each part's `b`, with zeros in the columns of the other parts."""
    width = next(x.outputs for x in parts if x is not None)
    rows = []
    for i, part in enumerate(parts):
        if part is not None:
            before, after = i * width, (len(parts) - i - 1) * width
            still = [(0, 0)] * (part.b.ndim - 1)
            rows.append(xp.pad(part.b, [*still, (before, after)]))
    return rows


def _at_rank(joined: Adapter, rank: int) -> Adapter:
    """Return the same product at `rank`, unless its own rank is larger.

    A child of the pair has at most `rank`, since all of its parts lie in the columns of
    the parent's one `a`. Adapters from elsewhere keep their own rank.
    """
    # Traced values cannot be checked; a traced child is assumed to be of this pair.
    if isinstance(joined.a, jax.core.Tracer):
        return _leading(joined, rank=rank)[0]
    with wide():
        small, rest = jax.device_get(_leading(joined, rank=rank))
    # Within the rounding of the stored factors, the further components are zero.
    exact = float(jnp.finfo(joined.a.dtype).eps) * joined.rank
    return small if rest <= exact else joined


@functools.partial(jax.jit, static_argnames="rank")
def _leading(adapter: Adapter, *, rank: int) -> tuple[Adapter, jax.Array]:
    """Return the leading components, and the relative size of the first dropped one."""
    adapters = {"": adapter}
    spectra = decompose(adapters)
    s = spectra[""].s
    masks = {"": jnp.broadcast_to(jnp.arange(s.shape[-1]) < rank, s.shape)}
    # `tiny` keeps an update of zero from dividing zero by zero.
    first = jnp.max(s[..., :1], initial=jnp.finfo(s.dtype).tiny)
    rest = jnp.max(s[..., rank:], initial=0) / first
    return pack(spectra, masks, adapters, width=rank)[""], rest


def _zeros(pair: Pair, dtype: Any) -> Adapter:
    a, b = matrices(pair.axes, *(np.zeros(shape, dtype) for shape in pair.shapes))
    return Adapter(a=a[..., :1], b=b[..., :1, :])


def _module(adapters: Sequence[Adapter]) -> Any:
    # NumPy stays NumPy: a host checkpoint must not move to a device on the way back.
    leaves = jax.tree.leaves(list(adapters))
    return np if all(isinstance(x, np.ndarray) for x in leaves) else jnp
