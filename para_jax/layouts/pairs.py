"""One adapter in a tree: where its halves are, and its way out and back in.

Traced, all but the checks of shapes: `take` and `put` work inside `jit`, so that a
training step can compress the state of a model.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter, Array, folded
from para_jax._adapters.padding import pad
from para_jax._adapters.precision import wide
from para_jax._adapters.stacks import member, stack
from para_jax._pruning.decompose import decompose
from para_jax._pruning.repack_traced import pack
from para_jax.layouts.axes import Axes, Shape, matrices, stored

Key = tuple[str, ...]
"""The path of a leaf, one string a level."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Where the two halves of an adapter are in a tree, and how they lie.

    Attributes:
      path: What the adapter is called: the module's slash-joined path.
      module: The module that the library looks up a rank for. Pairs of one module
        have one rank.
      a: The key of the input-side factor.
      b: The key of the output-side factor.
      axes: The roles of their axes.
      shapes: Their stored shapes.
      parts: For a fused projection, the names of what the first output axis joins,
        such as `("k", "v")`: each is an adapter by itself.
      alpha: The key of a leaf that holds alpha, where the tree has one.
    """

    path: str
    module: str
    a: Key
    b: Key
    axes: Axes
    shapes: tuple[Shape, Shape]
    parts: tuple[str, ...] = ()
    alpha: Key = ()

    @property
    def rank(self) -> int:
        return self.shapes[0][self.axes.a.index("r")]

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the adapters that the pair holds."""
        return tuple(f"{self.path}/{x}" for x in self.parts) or (self.path,)

    @property
    def stack(self) -> Shape:
        """The shape of the stack."""
        sizes = zip(self.axes.a, self.shapes[0], strict=True)
        return tuple(n for role, n in sizes if role == "L")


def members(pair: Pair) -> list[str]:
    """Returns what the adapters of a pair may be called, and each kernel of theirs."""
    kernels = [member(name, i) for name in pair.names for i in np.ndindex(pair.stack)]
    return [*pair.names, *kernels]


def take(pair: Pair, a: Array, b: Array, scale: float) -> dict[str, Adapter]:
    """Returns the adapters of a pair; those of a fused one share `a`."""
    a, b = matrices(pair.axes, a, b)
    width = b.shape[-1] // len(pair.names)
    return {
        name: Adapter(a=a, b=b[..., i * width : (i + 1) * width], scale=scale)
        for i, name in enumerate(pair.names)
    }


def whole(pair: Pair, child: Mapping[str, Adapter], dtype: Any) -> Adapter:
    """Returns the one adapter of scale 1 that a pair's place in the tree takes.

    The kernels of a stack are padded to the largest of their ranks. A module that the
    child does not have gets one rank of zeros in `dtype`, since the tree's form has a
    place for it. The parts of a fused projection come side by side, or, where that is
    more than the parent's rank, as the same product at the parent's rank.
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


def put(pair: Pair, adapter: Adapter) -> dict[Key, Array]:
    """Returns the leaves of an adapter, in the form that the tree has."""
    a, b = stored(pair.axes, adapter.a, adapter.b, pair.shapes)
    return {pair.a: a, pair.b: b}


def _stacked(pair: Pair, name: str, child: Mapping[str, Adapter]) -> Adapter | None:
    """Returns an adapter with the stack of its pair, if the child has any of it."""
    if name in child:
        return folded(child[name])
    names = [member(name, index) for index in np.ndindex(pair.stack)]
    found = {x: folded(child[x]) for x in names if x in child}
    if not found:
        return None
    rank = max(x.rank for x in found.values())
    one = next(iter(found.values()))
    like = Adapter(
        a=np.zeros((one.inputs, rank), one.a.dtype),
        b=np.zeros((rank, one.outputs), one.b.dtype),
    )
    return stack(pad(found, like=dict.fromkeys(names, like)), {name: pair.stack})[name]


def _block_rows(parts: Sequence[Adapter | None], xp: Any) -> list[Any]:
    """Returns each part's `b`, with zeros in the columns of the other parts."""
    width = next(x.outputs for x in parts if x is not None)
    rows = []
    for i, part in enumerate(parts):
        if part is not None:
            before, after = i * width, (len(parts) - i - 1) * width
            still = [(0, 0)] * (part.b.ndim - 1)
            rows.append(xp.pad(part.b, [*still, (before, after)]))
    return rows


def _at_rank(joined: Adapter, rank: int) -> Adapter:
    """Returns the same product in `rank` columns, if it has no more than that rank.

    That it has is so for a child of the pair, whose parts all lie in the columns of the
    parent's one `a`. Adapters that came from elsewhere keep their own rank.
    """
    if isinstance(joined.a, jax.core.Tracer):
        return _leading(joined, rank=rank)[0]
    with wide():
        small, rest = jax.device_get(_leading(joined, rank=rank))
    exact = float(jnp.finfo(joined.a.dtype).eps) * joined.rank
    return small if rest <= exact else joined


@functools.partial(jax.jit, static_argnames="rank")
def _leading(adapter: Adapter, *, rank: int) -> tuple[Adapter, jax.Array]:
    """Returns the leading components, and how large the first of the others is."""
    adapters = {"": adapter}
    spectra = decompose(adapters)
    s = spectra[""].s
    masks = {"": jnp.broadcast_to(jnp.arange(s.shape[-1]) < rank, s.shape)}
    first = jnp.max(s[..., :1], initial=jnp.finfo(s.dtype).tiny)
    rest = jnp.max(s[..., rank:], initial=0) / first
    return pack(spectra, masks, adapters, width=rank)[""], rest


def _zeros(pair: Pair, dtype: Any) -> Adapter:
    a, b = matrices(pair.axes, *(np.zeros(shape, dtype) for shape in pair.shapes))
    return Adapter(a=a[..., :1], b=b[..., :1, :])


def _module(adapters: Sequence[Adapter]) -> Any:
    leaves = jax.tree.leaves(list(adapters))
    return np if all(isinstance(x, np.ndarray) for x in leaves) else jnp
