"""The cores of a model's updates, in the way that suits a platform.

A model's factors come in as many arrays, which are joined by shape first: to one array
each, or to a few on a GPU (`para_jax.linalg.pieces`).

Traceable under `jit`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from para_jax._adapters.choices import Method as Method
from para_jax.linalg import core, joins, pieces, platforms, products, tpu
from para_jax.linalg.core import Core
from para_jax.linalg.products import Factors

Way = Literal["auto", "mesh", "qr", "gram", "checked"]
"""The way that a program takes.

`auto` and `mesh`, for factors divided over devices, are decided by the platform that it
is lowered for. `checked` is `gram`, or `qr` if that loses digits.
"""

Groups = Sequence[joins.Members]
Join = Callable[[Groups], list[list[Array]]]
"""Joins the arrays of each group, to one array or a few."""


def cores(a: Groups, b: Groups, scale: Float[Array, " L"], way: Way) -> Core:
    """Return the cores of `scale * a @ b`, in the dtype of `scale`.

    Computed in float64 where JAX may, but on a TPU. In float32 the factors are brought
    near 1 first: squares would leave its range.

    Args:
      a: The factors `a` of each shape: arrays to join, or a single stack.
      b: Their counterparts.
      scale: In the order of all kernels.
      way: How to find them.
    """
    args = [*map(list, a)], [*map(list, b)], scale
    if way == "auto":
        return platforms.by_platform(
            *args, out=_shapes([x[0] for x in a], scale), **_AUTO
        )
    if way == "mesh":
        on_tpus, elsewhere = _of_groups(_on_tpus), _of_groups(_by_grams)
        return lax.platform_dependent(*args, tpu=on_tpus, default=elsewhere)
    ways = {"qr": _by_qr, "gram": _by_grams, "checked": _checked}
    return _of_groups(ways[way])(*args)


def leading(a: Groups, b: Groups, width: int) -> Float[Array, "L r w"]:
    """Return the first `width` columns of every `b`, filled up with zeros.

    Given all factors, since `cores` joins all: the compiler makes equal joins once.
    """
    rank = b[0][0].shape[-2]
    rows = sum(math.prod(x.shape[:-2]) for group in b for x in group)
    dtype = jnp.result_type(*(group[0].dtype for group in b))
    whole, in_pieces = _leading(width, _whole), _leading(width, pieces.join)
    return platforms.by_platform(
        *([*map(list, a)], [*map(list, b)]),
        out=jax.ShapeDtypeStruct((rows, rank, width), dtype),
        cpu=whole,
        cuda=in_pieces,
        tpu=whole,
        default=whole,
    )


@functools.cache
def _leading(width: int, join: Join) -> Callable[[Groups, Groups], Array]:
    def first(x: Array) -> Array:
        x = x[..., :width].reshape(-1, x.shape[-2], min(width, x.shape[-1]))
        return jnp.pad(x, [(0, 0), (0, 0), (0, width - x.shape[-1])])

    def leading(a: Groups, b: Groups) -> Array:
        rows = join([*a, *b])[len(a) :]
        return jnp.concatenate([first(x) for row in rows for x in row])

    return leading


def _whole(groups: Groups) -> list[list[Array]]:
    return [[joins.join(x)] for x in groups]


def _of_groups(
    way: Callable[[Factors, Factors, Array], Core], join: Join = _whole
) -> Callable[[Groups, Groups, Array], Core]:
    def joined(a: Groups, b: Groups, scale: Array) -> Core:
        # Together, as all shapes then share what joins them.
        rows = join([*a, *b])
        of_a, of_b = rows[: len(a)], rows[len(a) :]
        return way([*itertools.chain(*of_a)], [*itertools.chain(*of_b)], scale)

    return joined


def _shapes(a: Factors, scale: Float[Array, " L"]) -> Core:
    rank = a[0].shape[-1]
    shapes = (rank,), (rank, rank), (rank, rank)
    return Core(*(jax.ShapeDtypeStruct((len(scale), *x), scale.dtype) for x in shapes))


def _by_qr(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    return _scaled(products.by_qr, a, b, scale)


def _by_grams(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    return _scaled(products.by_grams, a, b, scale)


def _checked(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    return _scaled(products.checked, a, b, scale)


def _on_accelerator(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    is_wide = scale.dtype == jnp.float64
    return _scaled(products.checked if is_wide else products.by_grams, a, b, scale)


def _on_cuda(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    if scale.dtype == jnp.float64:
        return _scaled(products.checked, a, b, scale)
    # There `vmap` traces the choice once more, in the precision of its caller.
    if any(platforms.is_placed(x) for x in (*a, *b)):
        return _scaled(products.by_grams, a, b, scale)
    return in_float64(a, b, scale)


@jax.custom_jvp
def in_float64(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    """Return the cores by Gram matrices in float64, rounded to float32 at the end.

    In a program without float64 too: one pass takes half the time of two in float32. Of
    float32 factors it loses less than a rounding of theirs, so there is nothing to
    check. The derivative is that of `qr` in float32: JAX's rules run in the precision
    of a later moment, and the second pass of `gram` loses it in the differences of all
    but equal eigenvalues.
    """
    shapes = _shapes(a, scale)
    with jax.enable_x64(True):
        return platforms.by_platform(
            *([*a], [*b], scale),
            out=shapes,
            cpu=_rounded,
            cuda=_rounded,
            tpu=_rounded,
            default=_rounded,
        )


def _rounded(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    """Return the cores in float32, those beyond its range as its largest number."""
    found = core.scaled(products.by_grams(a, b), scale.astype(jnp.float64))
    largest = float(jnp.finfo(jnp.float32).max)
    return Core(*(jnp.clip(x, -largest, largest).astype(jnp.float32) for x in found))


@in_float64.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Core, Core]:
    return in_float64(*primals), jax.jvp(_by_qr, primals, tangents)[1]


def _by_jacobi(a: Factors, b: Factors, scale: Float[Array, " L"]) -> Core:
    """Return the cores by Gram matrices, computed in float32."""
    find = functools.partial(products.by_grams, ops=tpu)
    found = _scaled(find, a, b, scale.astype(jnp.float32))
    return Core(*(x.astype(scale.dtype) for x in found))


def _with_derivative_of(
    other: Callable[[Factors, Factors, Array], Core],
    way: Callable[[Factors, Factors, Array], Core],
) -> Callable[[Factors, Factors, Array], Core]:
    """Return a way with the derivative of another.

    Loops of unknown length have none backwards. On any platform: JAX differentiates all
    branches of a choice.
    """
    both = jax.custom_jvp(way)

    @both.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Core, Core]:
        return both(*primals), jax.jvp(other, primals, tangents)[1]

    return both


_on_tpu = _with_derivative_of(_by_qr, _by_jacobi)
# A QR would gather factors that are divided over devices.
_on_tpus = _with_derivative_of(_by_grams, _by_jacobi)

_AUTO = {
    "cpu": _of_groups(_by_qr),
    "cuda": _of_groups(_on_cuda, pieces.join),
    "tpu": _of_groups(_on_tpu),
    "default": _of_groups(_on_accelerator),
}


def _scaled(
    find: Callable[[Factors, Factors], Core],
    a: Factors,
    b: Factors,
    scale: Float[Array, " L"],
) -> Core:
    if scale.dtype == jnp.float64:
        return core.scaled(find(a, b), scale)
    a, e_a = products.near_one(a)
    b, e_b = products.near_one(b)
    return core.shifted(core.scaled(find(a, b), scale), e_a, e_b)
