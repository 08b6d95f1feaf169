"""Many arrays times the matrices of a stack: the factors of a child, and its moments.

The arrays are joined by shape, multiplied, and the products divided again; on an NVIDIA
GPU by kernels, in pieces.

Traceable under `jit`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from para_jax.linalg import factorize, joins, pieces, platforms, sharding
from para_jax.linalg.divide import on_a_cpu, slices

# What a kernel takes and makes.
_DTYPES = {"float32", "bfloat16", "float16"}


class Product(NamedTuple):
    """Products of arrays `x_i` of one shape with rows of a stack, one a kernel.

    Attributes:
      x: Arrays `[*stack, d, r]` if `tall`, else `[*stack, r, d]`.
      w: `[L, r, k]` if `tall`, else `[L, k, r]`; of a single array, perhaps with its
        own stack's axes.
      first: The row of `w` that is the first kernel's.
      tall: Whether it is `x_i @ w_i`, else `w_i @ x_i`.
      dtype: The name of the dtype of the products.
    """

    x: Sequence[Array]
    w: Array
    first: int
    tall: bool
    dtype: str


def multiply(todo: Sequence[Product]) -> list[list[Array]]:
    """Return each product's arrays, in the shapes of the stacks.

    Computed in float32, rounded as float32 is, unless an array, its matrix or the
    product is float64; see `para_jax.linalg.factorize.applied`.
    """
    if sharding.mesh_of([x.x for x in todo]) is not None:
        return _sliced(todo)
    # A dtype as asked may not exist without JAX's 64-bit mode.
    dtypes = [jax.dtypes.canonicalize_dtype(x.dtype).name for x in todo]
    static = tuple(
        (x.first, x.tall, dtype) for x, dtype in zip(todo, dtypes, strict=True)
    )
    arrays = [(list(x.x), x.w) for x in todo]
    return _computed(static)(arrays)


@functools.lru_cache  # Equal functions are compiled once, outside of a program too.
def _computed(static: Any) -> Callable[[Any], list[list[Array]]]:
    def way(function: Callable[[Sequence[Product]], Any]) -> Callable[[Any], Any]:
        return lambda arrays: function(_products(arrays, static))

    ways = {
        "cpu": way(_on_a_cpu),
        "cuda": way(_by_kernels),
        "tpu": way(_sliced),
        "default": way(_sliced),
    }

    @jax.custom_jvp
    def compute(arrays: Any) -> Any:
        out = [_shapes(x) for x in _products(arrays, static)]
        return platforms.by_platform(arrays, out=out, **ways)

    # A loop of unknown length has no derivative backwards, nor has a kernel.
    @compute.defjvp
    def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
        return compute(*primals), jax.jvp(ways["default"], primals, tangents)[1]

    return compute


def _products(arrays: Any, static: Any) -> list[Product]:
    pairs = zip(arrays, static, strict=True)
    return [Product(*traced, *known) for traced, known in pairs]


def _shapes(todo: Product) -> list[jax.ShapeDtypeStruct]:
    new = todo.w.shape[-1 if todo.tall else -2]
    result = []
    for y in todo.x:
        *stack, rows, columns = y.shape
        shape = (*stack, rows, new) if todo.tall else (*stack, new, columns)
        result.append(jax.ShapeDtypeStruct(shape, jnp.dtype(todo.dtype)))
    return result


def _sliced(todo: Sequence[Product]) -> list[list[Array]]:
    """Return the products, joined and divided again by slices."""
    return _divided(todo, slices)


def _on_a_cpu(todo: Sequence[Product]) -> list[list[Array]]:
    return _divided(todo, on_a_cpu)


def _divided(
    todo: Sequence[Product], divide: Callable[..., list[list[Array]]]
) -> list[list[Array]]:
    whole = [_joined(x) for x in todo]
    many = [(x, y) for x, y in zip(todo, whole, strict=True) if len(x.x) > 1]
    parts = iter(divide([y for _, y in many], [_sizes(x.x) for x, _ in many]))
    return [
        _shaped(next(parts) if len(x.x) > 1 else [y], x)
        for x, y in zip(todo, whole, strict=True)
    ]


def _joined(todo: Product) -> Array:
    x = joins.join(todo.x)
    w = _rows(todo).reshape(*x.shape[:-2], *todo.w.shape[-2:])
    return factorize.applied(x, w, tall=todo.tall, dtype=todo.dtype)


def _rows(todo: Product) -> Array:
    """Return the matrices of a product."""
    if todo.w.ndim != 3:
        return todo.w
    return lax.slice_in_dim(todo.w, todo.first, todo.first + sum(_sizes(todo.x)))


def _sizes(x: Sequence[Array]) -> list[int]:
    return [math.prod(y.shape[:-2]) for y in x]


def _shaped(parts: Sequence[Array], todo: Product) -> list[Array]:
    pairs = zip(parts, todo.x, strict=True)
    return [y.reshape(*x.shape[:-2], *y.shape[-2:]) for y, x in pairs]


def _by_kernels(todo: Sequence[Product]) -> list[list[Array]]:
    """Return the products of arrays joined and divided by kernels, some at once."""
    groups = [x.x for x in todo]
    members = pieces.pieces(groups)
    made = [_of_pieces(*pair) for pair in zip(todo, pieces.join(groups), strict=True)]
    counts = [len(piece) for row in members for piece in row]
    pairs = list(zip(counts, (y for row in made for y in row), strict=True))
    # A row for each array, which may be a stack.
    rows = [y.reshape(n, -1, *y.shape[-2:]) for n, y in pairs if n > 1]
    split = iter(pieces.split(rows))
    parts = iter([next(split) if n > 1 else [y] for n, y in pairs])
    return [
        _shaped([y for _ in row for y in next(parts)], x)
        for x, row in zip(todo, members, strict=True)
    ]


def _of_pieces(todo: Product, x: Sequence[Array]) -> list[Array]:
    """Return the products of the arrays of `todo`, joined to a few stacks."""
    result = []
    first = todo.first
    for piece in x:
        result.append(_of_stack(todo._replace(x=[piece], first=first)))
        first += math.prod(piece.shape[:-2])
    return result


def _of_stack(todo: Product) -> Array:
    made = _by_kernel(todo)
    return _joined(todo) if made is None else made


def _by_kernel(todo: Product) -> Array | None:
    """Return the products of a single stack, or None where there is no kernel."""
    (x,) = todo.x
    known = {todo.dtype, x.dtype.name, todo.w.dtype.name} <= _DTYPES
    if not known or not factorize.on_one_gpu(x):
        return None
    from para_jax.linalg.gpu import multiply as gpu

    if max(todo.w.shape[-2:]) > gpu.MOST:
        return None
    rows = x.reshape(-1, *x.shape[-2:])
    w = todo.w.reshape(-1, *todo.w.shape[-2:]).astype(jnp.float32)
    first = np.array([todo.first], np.int32)
    make = functools.partial(
        *(gpu.multiply, first, w, rows), tall=todo.tall, dtype=todo.dtype
    )
    made = factorize.made_by(make, make)
    return None if made is None else made.reshape(*x.shape[:-2], *made.shape[-2:])
