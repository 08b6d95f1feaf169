"""Adapters on a mesh of devices, compressed in place.

Only arrays of at most `r x r` move between devices: Gram matrices are summed over the
devices of a factor, and the singular values of all modules meet in one pool. A factor
stays in its place, as does its product with an `r x r` matrix.

On automatic axes of a mesh the compiler divides a program in just that way, provided
that factors are neither joined nor reshaped, and small arrays are constrained to be
everywhere. On explicit axes every operation would need a sharding. So these become
automatic within our functions, and only the results name their shardings.

Traceable under `jit`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec as P

REPLICATED = P()
"""The whole array on every device."""


def mesh_of(tree: Any) -> AbstractMesh | None:
    """Return the mesh of several devices of an array in `tree`, if any.

    Known while tracing. Within `shard_map`, which runs a program on each device by
    itself, arrays are on one device.
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
    """Return `function(*args)`, computed in the place of the arguments.

    Args:
      function: Traceable. No axis of a mesh is explicit within it.
      *args: Trees of arrays. On explicit axes, arrays in the function's closure have
        to be on one device.
      out: The places of the results on explicit axes: a tree of PartitionSpecs, a
        prefix of theirs. On automatic axes the compiler decides.
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
    """Put all arrays on the mesh of the others, outside of a program."""
    leaves = [x for x in jax.tree.leaves(args) if isinstance(x, jax.Array)]
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        return args  # Within a program the compiler moves them.
    place: Any = next(x.sharding for x in leaves if mesh_of(x) is not None)
    whole = NamedSharding(place.mesh, REPLICATED)
    return jax.tree.map(
        lambda x: jax.device_put(x, whole) if mesh_of(x) is None else x, args
    )


def place(x: Any, *, rank_axis: int) -> P:
    """Return the mesh axes of a new factor: those of `x`, none for the rank."""
    if not isinstance(x, jax.Array):
        return REPLICATED
    spec = list(jax.typeof(x).sharding.spec)
    spec[rank_axis] = None
    return P(*spec)


def replicated(tree: Any) -> Any:
    """Return the same small arrays, whole on every device.

    Otherwise the compiler may divide them to match a factor in a product, and then
    moves the factor.
    """
    return jax.tree.map(_replicated, tree)


def _replicated(x: Any) -> Any:
    mesh = mesh_of(x)
    if mesh is None or mesh.explicit_axes:
        return x
    # A product constrained to be everywhere gathers its operands. So it is first left
    # wherever it is computed, and moves from there.
    anywhere = P(*[P.UNCONSTRAINED] * x.ndim)
    for spec in (anywhere, REPLICATED):
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    return x
