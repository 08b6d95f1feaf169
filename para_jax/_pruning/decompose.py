"""The singular values of every update, found without forming one.

With `a = Q_a R_a` and `b^T = Q_b R_b`, the update `scale * a @ b` has the singular
values of the core `M = scale * R_a R_b^T = U S V^T` (PARA, Eqs. 4-8). Only the `R`
factors are needed: since `scale * a R_b^T V = Q_a M V = Q_a U S`,

    a_hat = a @ left,    left  = scale * R_b^T V S^(-1/2)   : [r, k]
    b_hat = right @ b,   right = scale * S^(-1/2) U^T R_a   : [k, r]

is the balanced pair of Eq. 3. Nothing is inverted but the singular values that count
as nonzero, and a `Spectrum` takes `2 r k` numbers a kernel, however large the kernel.

Traceable under `jit`; `decompose_host.py` is the counterpart for whole models on the
host.
"""

import dataclasses
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from para_jax._adapters import precision
from para_jax._adapters.adapter import Adapter, check_pair
from para_jax._pruning.batches import groups, together
from para_jax.linalg import cores, sharding
from para_jax.linalg.core import Core
from para_jax.linalg.cores import Method


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

    Example:
      >>> up = para_jax.decompose(adapters)["up"]
      >>> np.asarray(up.s).round(3).tolist(), up.left.shape, up.right.shape, up.shape
      ([8.0, 4.0, 2.0, 1.0], (4, 4), (4, 4), (5, 7))
      >>> a = adapters["up"].a @ up.left  # Balanced: a^T a is diagonal, and holds s.
      >>> np.asarray(a.T @ a).diagonal().round(3).tolist()
      [8.0, 4.0, 2.0, 1.0]
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


@precision.kept
def decompose(
    adapters: Mapping[str, Adapter], *, method: Method = "auto"
) -> dict[str, Spectrum]:
    """Return the spectrum of each update, in O((m + n) r^2 + r^3) operations.

    Works under `jit`, `vmap` and on its own, on any mix of shapes, ranks and stacks.
    It computes in float64 where JAX may (`jax.enable_x64`), else in float32; the
    storage dtype does not matter. In float64 the singular values are right to 1e-5 of
    each, down to what counts as zero. In float32 they are right to 1e-5 of a module's
    largest, and to the rounding of what the norms of its `r` parts, a column of `a`
    times a row of `b` each, add up to; but the factors of a component lose their
    orthogonality as it gets weaker: to 1e-4 at a hundredth of the largest, a few 1e-2
    where it is lost.

    - Factors may have any scale that their dtype holds. In float32 a singular value
      beyond its range becomes its largest number, or 0.
    - A component counts as zero up to `r * eps` of the module's largest, with float32's
      eps; and where the parts cancel, up to eps of the computing dtype times what their
      norms add up to.
    - NaN or infinity in a factor makes its own module NaN.

    The methods:

    - `qr`: a QR of each factor, the paper's way. Its error is one rounding, relative
      to the product of the factors' norms.
    - `gram`: `a^T a` and `b b^T`, whose Cholesky factors or eigenvectors give the `R`s.
      All matrix products, and no gather of sharded factors. In float64 one pass
      suffices; in float32, where the squared condition number would cost half the
      digits, a second pass over the almost orthogonal factor restores them. In float64
      almost dependent columns still cost digits: an error of 1e-8, relative to the
      product of the factors' norms. That is far below 1e-5 of the largest singular
      value, unless the factors cancel to a thousandth of their norms.
    - `auto`: by the platform that a program is lowered for. `qr` on CPU, where it takes
      two to three times as long. On GPUs, where the library's QR takes ten to fifty
      times as long, `gram` in float64, and `qr` if the columns of any factor turn out
      to be almost dependent; a derivative is that of `gram`. In float32 on an NVIDIA
      GPU, `gram` in float64 too, its result rounded, and a derivative that of `qr` in
      float32; on other accelerators, and on a mesh of devices, where factors then stay
      in their place, `gram`. On TPUs `gram`, always in float32, by operations that
      their compiler takes seconds over: over those of `method="gram"` and `"qr"`, and
      over a derivative, it takes minutes or hours.

    Example:
      >>> spectra = jax.jit(para_jax.decompose)(adapters)
      >>> {path: np.asarray(x.s).round(3).tolist() for path, x in spectra.items()}
      {'down': [6.0, 0.5], 'up': [8.0, 4.0, 2.0, 1.0]}

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
        check_pair(path, adapter)
    way = _way(method, adapters)
    return sharding.in_place(lambda x: _decompose(x, way), dict(adapters))


def _decompose(adapters: Mapping[str, Adapter], way: cores.Way) -> dict[str, Spectrum]:
    # A batch of `r x r` problems a rank: padded to one rank, each would cost the cube
    # of the largest, and zeros would count as columns.
    result: dict[str, Spectrum] = {}
    for rank in sorted({x.rank for x in adapters.values()}):
        group = {p: x for p, x in adapters.items() if x.rank == rank}
        result |= _decompose_one_rank(group, way)
    return {path: result[path] for path in adapters}


def _way(method: Method, adapters: Mapping[str, Adapter]) -> cores.Way:
    """Return the way to the `R` factors.

    Raises:
      ValueError: if the method is unknown.
    """
    if method not in typing.get_args(Method):
        raise ValueError(f"Unknown method {method!r}: expected 'auto', 'qr' or 'gram'.")
    # A QR would gather each factor; a Gram matrix is a sum over devices.
    on_mesh = method == "auto" and sharding.mesh_of(adapters) is not None
    return "mesh" if on_mesh else method


def _decompose_one_rank(
    adapters: Mapping[str, Adapter], way: cores.Way
) -> dict[str, Spectrum]:
    """Decomposes adapters of one rank, all their r x r problems in one batch."""
    found = groups(adapters)
    a = [[jnp.asarray(adapters[p].a) for p in x.stacks] for x in found]
    b = [[jnp.asarray(adapters[p].b) for p in x.stacks] for x in found]
    everything = together(found)
    wide = jax.dtypes.canonicalize_dtype(float)
    scales = {
        p: np.full(adapters[p].stack, adapters[p].scale, wide)
        for p in everything.stacks
    }
    whole = cores.cores(a, b, jnp.asarray(everything.join(scales)), way)
    parts = [sharding.replicated(everything.split(x)) for x in whole]
    return {
        path: spectrum_of(x, Core(*(y[path] for y in parts)), x.a.dtype)
        for path, x in adapters.items()
    }


def spectrum_of(adapter: Adapter, core: Core, dtype: DTypeLike) -> Spectrum:
    """Return the spectrum of an update.

    Args:
      adapter: The update; only its shapes and its nominal rank are read.
      core: Its singular values and balanced factors, `r` of them or `k`.
      dtype: The dtype to store factors in.
    """
    shape = (adapter.inputs, adapter.outputs)
    k = min(*shape, adapter.rank)  # Beyond `k` there are zeros.
    if k < core.s.shape[-1]:
        core = Core(core.s[..., :k], core.left[..., :k], core.right[..., :k, :])
    return Spectrum(
        s=core.s,
        left=core.left,
        right=core.right,
        shape=shape,
        dtype=np.dtype(dtype).name,
        nominal=min(adapter.nominal or adapter.rank, k),
    )
