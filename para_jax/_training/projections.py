"""Products of moments with transforms, all of one shape at a time.

A program that names each moment compiles and starts slowly: a model has four for each
module. They are joined in the order in which `squeeze` split the transforms, so that
the compiler drops that split and this join.

Traceable under `jit`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from para_jax.linalg import factorize, sharding
from para_jax.linalg.divide import divide


class Projection(NamedTuple):
    """A moment of one factor, and the matrix that brings it to the new factor's place.

    Attributes:
      moment: `[*stack, m, r]` of `a`, `[*stack, r, n]` of `b`.
      matrix: `[*stack, r, k]` for `a`, `[*stack, k, r]` for `b`.
      is_a: Which of them.
      squared: Whether the moment is a mean of squares.
      module: The path of the adapter.
    """

    moment: Any
    matrix: Any
    is_a: bool
    squared: bool
    module: str


def projected(
    todo: Sequence[Projection], order: Sequence[str]
) -> list[Float[Array, "..."]]:
    """Return every moment times its matrix, in the dtype of the moment.

    Args:
      todo: The moments.
      order: The paths of the adapters, in the order of `squeeze`.
    """
    groups = _groups(todo, order)
    products = [_product([todo[i] for i in group]) for group in groups]
    together = [len(group) > 1 for group in groups]
    joined = [x for x, many in zip(products, together, strict=True) if many]
    members = [group for group, many in zip(groups, together, strict=True) if many]
    parts = divide(joined, [[1] * len(group) for group in members])
    result = {
        group[0]: x
        for group, x, many in zip(groups, products, together, strict=True)
        if not many
    }
    for group, row in zip(members, parts, strict=True):
        result |= {i: part[0] for i, part in zip(group, row, strict=True)}
    return [result[i] for i in range(len(todo))]


def _groups(todo: Sequence[Projection], order: Sequence[str]) -> list[list[int]]:
    """Return the indices of moments of equal shapes; a stack is alone."""
    at = {module: i for i, module in enumerate(order)}
    # Both shapes of a pair, as it is pairs of equal shapes that `squeeze` joined.
    pairs: dict[str, set[Any]] = {}
    for one in todo:
        pairs.setdefault(one.module, set()).add((one.is_a, np.shape(one.moment)))
    found: dict[Any, list[int]] = {}
    for i in sorted(range(len(todo)), key=lambda i: at[todo[i].module]):
        one = todo[i]
        alone = np.ndim(one.moment) > 2 or sharding.mesh_of(one.moment) is not None
        pair = i if alone else frozenset(pairs[one.module])
        key = (pair, one.is_a, one.squared, one.moment.dtype, one.matrix.shape)
        found.setdefault(key, []).append(i)
    return list(found.values())


def _product(group: Sequence[Projection]) -> Float[Array, "..."]:
    """Return the moments of a group, joined, times their matrices."""
    first = group[0]
    if len(group) == 1:
        moment, matrix = jnp.asarray(first.moment), first.matrix
    else:
        moment = jnp.stack([one.moment for one in group])
        matrix = jnp.stack([one.matrix for one in group])
    # Otherwise XLA may shard the r x k matrix like the moment, and move the moment.
    matrix = sharding.replicated(jnp.asarray(matrix))
    # Sums over the rank in bfloat16 would lose momentum.
    wide = np.promote_types(moment.dtype, np.float32)
    matrix, values = matrix.astype(wide), moment.astype(wide)
    matrix = matrix * matrix if first.squared else matrix
    pair = (values, matrix) if first.is_a else (matrix, values)
    place = sharding.place(values, rank_axis=-1 if first.is_a else -2)
    return sharding.in_place(factorize.matmul, *pair, out=place).astype(moment.dtype)
