"""Adapters on a mesh of devices, compressed where they are. Traced.

Only what is `r x r` or smaller moves: Gram matrices are summed over the devices that
share a factor, and the singular values of all modules meet in one pool. A factor stays
in its place, as does its product with an `r x r` matrix.

On automatic axes of a mesh the compiler divides a program in just that way, as long as
factors are neither joined nor reshaped, and what is small is told to be everywhere. On
explicit axes every operation would have to be told. So these become automatic within
our functions, and only what comes out says where it is.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

REPLICATED = P()
"""The whole array on every device."""


def mesh_of(tree: Any) -> AbstractMesh | None:
    """Returns the mesh of several devices that an array of `tree` is on, if any.

    Known while tracing. Where `shard_map` runs a program on each device by itself, its
    arrays are on that one.
    """
    for x in jax.tree.leaves(tree):
        if not isinstance(x, jax.Array):
            continue
        mesh = jax.typeof(x).sharding.mesh
        axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
        if any(size > 1 and kind != AxisType.Manual for size, kind in axes):
            return mesh
    return None


def in_place(function: Callable[..., Any], *args: Any, out: Any = REPLICATED) -> Any:
    """Returns `function(*args)`, computed where the compiler finds the arguments.

    Args:
      function: Traced. No axis of a mesh is explicit within it.
      *args: Trees of arrays. Where an axis is explicit, all that the function closes
        over has to be on one device.
      out: Where the results are on explicit axes: a tree of PartitionSpecs that is a
        prefix of theirs. On automatic ones the compiler decides.
    """
    mesh = mesh_of(args)
    if mesh is None or not mesh.explicit_axes:
        return function(*args)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), out)
    automatic = jax.sharding.auto_axes(
        function, axes=mesh.explicit_axes, out_sharding=shardings
    )
    return automatic(*_onto_mesh(args))


def _onto_mesh(args: Any) -> Any:
    """Returns what is not on the mesh yet also there, outside of a program."""
    leaves = [x for x in jax.tree.leaves(args) if isinstance(x, jax.Array)]
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        return args
    place: Any = next(x.sharding for x in leaves if mesh_of(x) is not None)
    whole = NamedSharding(place.mesh, REPLICATED)
    return jax.tree.map(
        lambda x: jax.device_put(x, whole) if mesh_of(x) is None else x, args
    )


def place(x: Any, *, rank_axis: int) -> P:
    """Returns what `places` returns, of one factor."""
    if not isinstance(x, jax.Array):
        return REPLICATED
    spec = list(jax.typeof(x).sharding.spec)
    spec[rank_axis] = None
    return P(*spec)


def replicated(tree: Any) -> Any:
    """Returns the same arrays, whole on every device. For what is small.

    Otherwise the compiler may divide it as the factor is that it is multiplied with,
    and then moves the factor.
    """
    return jax.tree.map(_replicated, tree)


def _replicated(x: Any) -> Any:
    mesh = mesh_of(x)
    if mesh is None or mesh.explicit_axes:
        return x
    # A product that is told to be everywhere gathers its operands. So it is first told
    # to be wherever it is, and that is what moves.
    anywhere = P(*[P.UNCONSTRAINED] * x.ndim)
    for spec in (anywhere, REPLICATED):
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    return x
