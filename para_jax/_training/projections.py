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

from para_jax.linalg import sharding
from para_jax.linalg.multiply import Product, multiply


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
    result = {}
    for group, parts in zip(groups, _multiplied(products), strict=True):
        result |= dict(zip(group, parts, strict=True))
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


def _product(group: Sequence[Projection]) -> Product:
    """Return the moments of a group with their matrices."""
    first = group[0]
    matrix = first.matrix
    if matrix.ndim == 2:
        matrix = jnp.stack([one.matrix for one in group])
    # Otherwise XLA may shard the r x k matrix like the moment, and move the moment.
    matrix = sharding.replicated(jnp.asarray(matrix))
    moments = [jnp.asarray(one.moment) for one in group]
    # Sums over the rank in bfloat16 would lose momentum.
    matrix = matrix.astype(np.promote_types(moments[0].dtype, np.float32))
    matrix = matrix * matrix if first.squared else matrix
    return Product(moments, matrix, 0, tall=first.is_a, dtype=moments[0].dtype.name)


def _multiplied(products: Sequence[Product]) -> list[list[Array]]:
    """Return the products, those of factors on a mesh in their place."""
    here = [sharding.mesh_of(x.x) is None for x in products]
    todo = [x for x, is_here in zip(products, here, strict=True) if is_here]
    made = iter(multiply(todo))
    return [
        next(made) if is_here else _in_place(x)
        for x, is_here in zip(products, here, strict=True)
    ]


def _in_place(product: Product) -> list[Array]:
    place = sharding.place(product.x[0], rank_axis=-1 if product.tall else -2)

    def run(x: Array, w: Array) -> Array:
        return multiply([product._replace(x=[x], w=w)])[0][0]

    return [sharding.in_place(run, product.x[0], product.w, out=place)]
