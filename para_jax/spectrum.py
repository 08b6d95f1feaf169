"""The singular values of every update, found without forming one. Traced.

With `a = Q_a R_a` and `b^T = Q_b R_b`, the update `scale * a @ b` has the singular
values of the core `M = scale * R_a R_b^T = U S V^T` (PARA, Eqs. 4-8). Only the `R`
factors are needed: since `scale * a R_b^T V = Q_a M V = Q_a U S`,

    a_hat = a @ left,    left  = scale * R_b^T V S^(-1/2)   : [r, k]
    b_hat = right @ b,   right = scale * S^(-1/2) U^T R_a   : [k, r]

is the balanced pair of Eq. 3. Nothing is inverted but the singular values that count
as nonzero, and a `Spectrum` takes `2 r k` numbers a kernel, however large the kernel.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from para_jax import linalg, sharding
from para_jax.adapters import Adapter
from para_jax.groups import Group, groups

RESOLUTION = float(np.finfo(np.float32).eps)
"""What float32 factors resolve, relative to the largest, a column."""

Method = Literal["auto", "qr", "gram"]
Roots = Callable[[Sequence[Array], np.dtype], list[Array]]


@typing.no_type_check  # JAX also calls `__init__` with non-arrays: jaxtyping#277.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The singular values of an update, and its balanced factors in `r` coordinates.

    `k = min(m, n, r)`. Components are sorted, so a smaller child is a prefix of a
    larger one, and one Spectrum serves every budget.

    Attributes:
      s: Singular values of `scale * a @ b`, `[*stack, k]`, descending.
      left: `a_hat = a @ left`, `[*stack, r, k]`; zero where `s` counts as zero.
      right: `b_hat = right @ b`, `[*stack, k, r]`; zero where `s` counts as zero.
      shape: `(m, n)`: a rank costs `m + n` parameters.
      dtype: The name of the dtype to store factors in; the parent's.
      nominal: The rank that budgets count.
    """

    s: jax.Array
    left: jax.Array
    right: jax.Array
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    nominal: int = dataclasses.field(metadata={"static": True})

    @property
    def rank(self) -> int:
        """The rank `r` of the adapter's factors."""
        return self.left.shape[-2]


Spectra = Mapping[str, Spectrum]


def decompose(
    adapters: Mapping[str, Adapter], *, method: Method = "auto"
) -> dict[str, Spectrum]:
    """Returns the spectrum of each update, in O((m + n) r^2 + r^3) operations.

    Works under `jit`, `vmap` and on its own, on any mix of shapes, ranks and stacks.
    It computes in float64 where JAX may (`jax.enable_x64`), else in float32; the
    storage dtype does not matter. In float32 the singular values are right to 1e-5 of
    a module's largest, but the factors of a component lose their orthogonality as it
    gets weaker: to 1e-4 at a hundredth of the largest, a few 1e-2 where it is lost.
    The methods:

    - `qr`: a QR of each factor, the paper's way. Its error is one rounding, relative
      to the product of the factors' norms.
    - `gram`: `a^T a` and `b b^T`, whose scaled eigenvectors give the `R`s. All matrix
      products, and no gather of sharded factors. In float64 one pass suffices; in
      float32, where the squared condition number would cost half the digits, a
      second pass over the almost orthogonal factor restores them. In float64 linearly
      dependent columns still cost digits: an error of 1e-8, relative to the product of
      the factors' norms. That is far below 1e-5 of the largest singular value, unless
      the factors cancel to a thousandth of their norms.
    - `auto`: `qr` on CPU, where it takes two to three times as long and is safe in that
      case too (adapters made plain may be like this); `gram` on accelerators, where
      the library's QR takes ten to fifty times as long, and on a mesh of devices, where
      factors then stay in their place.

    Example:
      >>> spectra = jax.jit(para_jax.decompose)(adapters)
      >>> masks = para_jax.masks(spectra, para_jax.Gamma(0.25))

    Args:
      adapters: The updates by path. Each scale is folded in, so the singular values
        of different modules compare.
      method: How to find the `R` factors.

    Returns:
      A Spectrum by path, its arrays in the computing dtype; on a mesh with explicit
      axes, whole on every device.

    Raises:
      ValueError: if a pair of factors does not fit together, or is not floating
        point, or the method is unknown. The message names the path.
    """
    for path, adapter in adapters.items():
        check(path, adapter)
    roots = _roots(method, on_mesh=sharding.mesh_of(adapters) is not None)
    return sharding.in_place(lambda x: _decompose(x, roots), dict(adapters))


def _decompose(adapters: Mapping[str, Adapter], roots: Roots) -> dict[str, Spectrum]:
    wide = jax.dtypes.canonicalize_dtype(np.float64)
    result: dict[str, Spectrum] = {}
    for rank in sorted({x.rank for x in adapters.values()}):
        group = {p: x for p, x in adapters.items() if x.rank == rank}
        result |= _decompose_one_rank(group, roots, wide)
    return {path: result[path] for path in adapters}


def check(path: str, adapter: Adapter) -> None:
    """Raises ValueError, naming `path`, unless the two factors fit together."""
    a, b = adapter.a, adapter.b
    if a.ndim < 2 or b.ndim != a.ndim or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(
            f"'{path}': expected a [*stack, m, r] and b [*stack, r, n], got "
            f"{list(a.shape)} and {list(b.shape)}."
        )
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"'{path}': the ranks disagree: a {list(a.shape)} has {a.shape[-1]}, "
            f"b {list(b.shape)} has {b.shape[-2]}."
        )
    if 0 in a.shape or 0 in b.shape:
        raise ValueError(
            f"'{path}': an axis of a {list(a.shape)} or b {list(b.shape)} is empty. "
            "A module of rank 0 is left out instead."
        )
    for name, x in (("a", a), ("b", b)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"'{path}': {name} is {x.dtype}, expected floating point.")


def tolerance(s: Array, rank: int) -> Array:
    """Returns the value up to which the `s` of a module counts as zero, `[..., 1]`.

    `r * eps * s_1` with float32's eps: what float32 factors resolve. The usual
    `max(m, n) * eps` would drop genuine values of graded factors.
    """
    return rank * RESOLUTION * s[..., :1]


def _roots(method: Method, *, on_mesh: bool) -> Roots:
    if method == "auto":
        safe = jax.default_backend() == "cpu" and not on_mesh
        method = "qr" if safe else "gram"
    try:
        return {"qr": _qr_roots, "gram": _gram_roots}[method]
    except KeyError:
        raise ValueError(
            f"Unknown method {method!r}: expected 'auto', 'qr' or 'gram'."
        ) from None


def _decompose_one_rank(
    adapters: Mapping[str, Adapter], roots: Roots, wide: np.dtype
) -> dict[str, Spectrum]:
    """Decomposes adapters of one rank, all their r x r problems in one batch."""
    found = groups(adapters)
    tall = [
        jnp.asarray(group.join({p: adapters[p].a for p in group.stacks}))
        for group in found
    ]
    tall += [
        jnp.asarray(group.join({p: adapters[p].b for p in group.stacks})).mT
        for group in found
    ]
    r_a, r_b = jnp.split(jnp.concatenate(roots(tall, wide)), 2)
    everything = Group({p: s for group in found for p, s in group.stacks.items()})
    scales = {p: np.full(x.modules, x.scale, wide) for p, x in adapters.items()}
    scale = everything.join(
        {p: scales[p].reshape(stack) for p, stack in everything.stacks.items()}
    )
    balanced = _balanced(r_a, r_b, jnp.asarray(scale))
    parts = [sharding.replicated(everything.split(x)) for x in balanced]
    return {
        path: _spectrum(x, *(y[path] for y in parts)) for path, x in adapters.items()
    }


def _balanced(
    r_a: Float[Array, "L r r"], r_b: Float[Array, "L r r"], scale: Float[Array, " L"]
) -> tuple[Float[Array, "L r"], Float[Array, "L r r"], Float[Array, "L r r"]]:
    """Returns `s`, `left` and `right` of all components, the unresolved ones zero."""
    r_a = scale[:, None, None] * r_a
    u, s, vt = linalg.svd(linalg.matmul(r_a, r_b.mT))
    nonzero = s > tolerance(s, s.shape[-1])
    weight = jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, s, 1)), 0)
    left = linalg.matmul(r_b.mT, vt.mT) * (weight * scale[:, None])[:, None, :]
    right = linalg.matmul(u.mT, r_a) * weight[:, :, None]
    return s, left, right


def _spectrum(adapter: Adapter, s: Array, left: Array, right: Array) -> Spectrum:
    shape = (adapter.inputs, adapter.outputs)
    k = min(*shape, adapter.rank)
    return Spectrum(
        s=s[..., :k],
        left=left[..., :k],
        right=right[..., :k, :],
        shape=shape,
        dtype=np.dtype(adapter.a.dtype).name,
        nominal=min(adapter.nominal or adapter.rank, k),
    )


def _qr_roots(tall: Sequence[Array], wide: np.dtype) -> list[Array]:
    """Returns `R [L, r, r]` with `R^T R = x^T x` of each `x [*stack, d, r]`."""
    return [linalg.qr_r(x.astype(wide).reshape(-1, *x.shape[-2:])) for x in tall]


def _gram_roots(tall: Sequence[Array], wide: np.dtype) -> list[Array]:
    """Returns what `_qr_roots` returns but for a rotation, by products alone."""
    tall = [x.astype(wide) for x in tall]
    root, whiten = _root_of_gram(_grams(tall))
    ends = np.cumsum([math.prod(x.shape[:-2]) for x in tall])[:-1]
    if wide == np.float32:
        # The factor times `whiten` is almost orthogonal; a direction so weak that its
        # first estimate is noise is at least enlarged. A second pass finds what is
        # left as exactly as QR would.
        pairs = zip(tall, jnp.split(whiten, ends), strict=True)
        second, _ = _root_of_gram(_grams([_times(x, w) for x, w in pairs]))
        # Triangular again, so that graded columns stay graded in what follows.
        root = linalg.qr_r(linalg.matmul(second, root))
    return jnp.split(root, ends)


def _grams(tall: Sequence[Array]) -> Float[Array, "N r r"]:
    grams = [linalg.matmul(x.mT, x) for x in tall]
    small = [sharding.replicated(x) for x in grams]
    return jnp.concatenate([x.reshape(-1, *x.shape[-2:]) for x in small])


def _times(x: Float[Array, "... d r"], w: Float[Array, "L r r"]) -> Array:
    w = sharding.replicated(w.reshape(*x.shape[:-2], *w.shape[-2:]))
    return linalg.matmul(x, w)


def _root_of_gram(
    gram: Float[Array, "N r r"],
) -> tuple[Float[Array, "N r r"], Float[Array, "N r r"]]:
    """Returns `R` with `R^T R = gram`, and its inverse where that is not noise.

    The columns are brought to unit length first: the error is then relative to each
    column's own length, so that graded factors lose nothing.
    """
    squares = jnp.diagonal(gram, axis1=-2, axis2=-1)
    lengths = jnp.sqrt(squares)
    safe = jnp.where(squares > 0, lengths, 1)
    values, vectors = linalg.eigh(gram / (safe[:, :, None] * safe[:, None, :]))
    floor = gram.shape[-1] * jnp.finfo(gram.dtype).eps  # The largest is 1 or more.
    values = jnp.sqrt(jnp.maximum(values, floor))
    root = values[:, :, None] * vectors.mT * lengths[:, None, :]
    whiten = vectors / values[:, None, :] / safe[:, :, None]
    return sharding.replicated((root, whiten))
