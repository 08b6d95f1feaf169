"""Adapters made smaller while they are trained, and what their optimizer remembers.

`squeeze` is traced: shapes stay, dropped components become zero, and one program serves
every budget. `shrink` is for the host: shapes become smaller, which is what saves time
and memory. Both return how moments change with the factors
(`para_jax._training.moments`).

With `a @ left`, `right @ b` the balanced factors of the update
(`para_jax._pruning.decompose`), and those columns of `left` and rows of `right` zero
that are dropped, the new factors are `a' = a @ l` and `b' = r @ b` with

    l = left / sqrt|scale|,    r = sign(scale) * right / sqrt|scale|:

`scale * a' @ b'` is the kept part of the update, so the adapter keeps its scale, and
with it its place in a compiled program.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from para_jax._adapters import precision
from para_jax._adapters.adapter import Adapter, Adapters
from para_jax._adapters.stacks import member
from para_jax._pruning import repack_traced
from para_jax._pruning.decompose import Spectrum, decompose
from para_jax._pruning.pipeline import spectra_of
from para_jax._pruning.policies import Policy
from para_jax._pruning.select import exact_masks, masks
from para_jax._training.moments import Transform
from para_jax.linalg import factorize, sharding
from para_jax.linalg.products import Method


class Squeezed(NamedTuple):
    """Smaller adapters, and how the gradients of the factors change with them.

    Attributes:
      adapters: The new adapters by path.
      transforms: By the same path, what `project_moments` needs.
    """

    adapters: dict[str, Adapter]
    transforms: dict[str, Transform]


@precision.kept
def squeeze(
    adapters: Mapping[str, Adapter], policy: Policy, *, method: Method = "auto"
) -> Squeezed:
    """Returns the adapters with only the kept components left, in the same shapes.

    The factors are balanced, `|scale| a'^T a' = |scale| b' b'^T = S`. A dropped
    component is a zero column of `a'` and a zero row of `b'`; both have no gradient, so
    under any optimizer that leaves zeros alone it stays dropped, also where a later
    budget is larger. So do not squeeze before the first steps: where `b` still is the
    zeros that it was initialised with, nothing would be left to train.

    At full budget the update stays the same, and so does the change of the loss that
    projected momentum predicts. All later updates stay the same too, for gradient
    descent with momentum, where `a^T a = b b^T` was true already: then `l` is
    orthogonal. Else, and for optimizers that treat each entry by itself, the balanced
    factors train differently, as any other factors of the same update would.

    Example:
      >>> import optax
      >>> optimizer = optax.sgd(0.1, momentum=0.9)
      >>> def smaller(lora, state, policy):
      ...     lora, transforms = para_jax.squeeze(lora, policy)
      ...     return lora, para_jax.project_moments(state, transforms)
      >>> @jax.jit
      ... def step(lora, state, policy, i):
      ...     grads = jax.tree.map(jnp.zeros_like, lora)  # In earnest, those of a loss.
      ...     updates, state = optimizer.update(grads, state, lora)
      ...     lora = optax.apply_updates(lora, updates)
      ...     now = (i + 1) % 100 == 0
      ...     return jax.lax.cond(now, smaller, lambda *x: x[:2], lora, state, policy)
      >>> state = optimizer.init(adapters)
      >>> small, state = step(adapters, state, para_jax.Gamma(0.5), 99)
      >>> {path: int((x.b != 0).any(-1).sum()) for path, x in small.items()}
      {'down': 1, 'up': 2}

    Args:
      adapters: The adapters by path. What `from_params` gives; or a trained tree itself
        may be such a mapping.
      policy: What to keep. A traced value does not compile anew.
      method: See `decompose`.

    Raises:
      ValueError: as `decompose` and `masks`.
    """
    spectra = decompose(adapters, method=method)
    kept = masks(spectra, policy)
    new, transforms = {}, {}
    for path, adapter in adapters.items():
        left, right = _pair(adapter, spectra[path], kept[path], jnp)
        missing = adapter.rank - left.shape[-1]
        still = [(0, 0)] * len(adapter.stack)
        left = jnp.pad(left, [*still, (0, 0), (0, missing)])
        right = jnp.pad(right, [*still, (0, missing), (0, 0)])
        left, right = sharding.replicated((left, right))
        places = repack_traced.places(adapter)
        a, b = sharding.in_place(_applied, adapter, left, right, out=places)
        new[path] = dataclasses.replace(adapter, a=a, b=b)
        transforms[path] = _transform(path, (), left, right)
    return Squeezed(new, transforms)


def shrink(
    adapters: Adapters,
    policy: Policy,
    *,
    form: Literal["padded", "ragged"] = "ragged",
    method: Method = "auto",
) -> Squeezed:
    """Returns the adapters at their new ranks: smaller factors, as NumPy arrays. Host.

    The product is that of `squeeze`; `form` is as in `repack`, and a module that keeps
    nothing is absent. Ranks are exact, as in `compress`, whose children differ from
    these in two ways only: their scale is 1, and their signs are settled.

    A share of ranks is of those that are left: shrinking twice by `Gamma(0.5)` leaves a
    quarter, where squeezing twice leaves a half.

    Example:
      >>> small, transforms = para_jax.shrink(adapters, para_jax.Gamma(0.5))
      >>> {path: x.a.shape for path, x in small.items()}
      {'down': (7, 1), 'up': (5, 2)}
      >>> transforms["up"].a.shape  # What project_moments multiplies moments with.
      (4, 2)

    Args:
      adapters: The adapters by path, concrete.
      policy: What to keep.
      form: `ragged` or `padded`.
      method: See `decompose`.

    Raises:
      ValueError: as `compress`, or if the form is unknown.
    """
    if form not in ("padded", "ragged"):
        raise ValueError(f"Unknown form {form!r}: expected 'padded' or 'ragged'.")
    spectra = spectra_of(adapters, method=method)
    kept = exact_masks(spectra, policy)
    new, transforms = {}, {}
    for path, adapter in adapters.items():
        left, right = _pair(adapter, spectra[path], kept[path], np)
        ranks = kept[path].sum(-1)
        for index in [()] if form == "padded" else np.ndindex(adapter.stack):
            if (rank := int(ranks[index].max())) == 0:
                continue
            pair = left[index][..., :rank], right[index][..., :rank, :]
            name = member(path, index)
            new[name] = _kernel(adapter, index, *pair)
            transforms[name] = _transform(path, index, *pair)
    return Squeezed(new, transforms)


def _pair(adapter: Adapter, spectrum: Spectrum, mask: Any, xp: Any) -> tuple[Any, Any]:
    """Returns `l` and `r`, the dropped columns and rows zero."""
    root = math.sqrt(abs(adapter.scale)) or 1.0  # Of scale 0 nothing is kept anyway.
    left, right = xp.asarray(spectrum.left), xp.asarray(spectrum.right)
    left = xp.where(mask[..., None, :], left / root, 0)
    right = xp.where(mask[..., None], right / math.copysign(root, adapter.scale), 0)
    return left, right


def _applied(adapter: Adapter, left: Any, right: Any) -> tuple[Any, Any]:
    a, b = jnp.asarray(adapter.a), jnp.asarray(adapter.b)
    a_new = factorize.matmul(a.astype(left.dtype), left)
    b_new = factorize.matmul(right, b.astype(right.dtype))
    return a_new.astype(a.dtype), b_new.astype(b.dtype)


def _transform(path: str, index: tuple[int, ...], left: Any, right: Any) -> Transform:
    return Transform(
        a=right.swapaxes(-1, -2), b=left.swapaxes(-1, -2), parent=path, index=index
    )


def _kernel(
    adapter: Adapter, index: tuple[int, ...], left: np.ndarray, right: np.ndarray
) -> Adapter:
    """Returns the kernel `index` of the adapter, or all of them, with new factors."""
    a, b = np.asarray(adapter.a)[index], np.asarray(adapter.b)[index]
    return Adapter(
        a=(a.astype(left.dtype) @ left).astype(a.dtype),
        b=(right @ b.astype(right.dtype)).astype(b.dtype),
        scale=adapter.scale,
    )
