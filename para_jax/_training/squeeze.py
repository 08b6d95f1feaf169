"""Prune adapters while they are trained, with the transforms of their moments.

`squeeze` is traceable under `jit`: shapes stay, dropped components become zero, and one
program serves every budget. `shrink` runs on the host: shapes become smaller, which
saves time and memory. Both return the transforms of the gradients
(`para_jax._training.moments`).

Let `a @ left` and `right @ b` be the balanced factors of the update
(`para_jax._pruning.decompose`), with the dropped columns of `left` and rows of `right`
set to zero. The new factors are `a' = a @ l` and `b' = r @ b` with

    l = left / sqrt|scale|,    r = sign(scale) * right / sqrt|scale|:

`scale * a' @ b'` is the kept part of the update. The adapter keeps its scale, which is
static, so the compiled program of a training step still serves it.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from para_jax._adapters import precision
from para_jax._adapters.adapter import Adapter, Adapters
from para_jax._adapters.stacks import member
from para_jax._pruning import repack_traced
from para_jax._pruning.decompose import Spectrum, decompose
from para_jax._pruning.pipeline import spectra_of
from para_jax._pruning.policies import Policy
from para_jax._pruning.repack_batches import Batch, Pair, batches
from para_jax._pruning.select import exact_masks, masks
from para_jax._training.moments import Transform
from para_jax.linalg import sharding
from para_jax.linalg.cores import Method


class Squeezed(NamedTuple):
    """Pruned adapters with the transforms of their gradients.

    Attributes:
      adapters: The new adapters by path.
      transforms: The argument of `project_moments`, by the same path.
    """

    adapters: dict[str, Adapter]
    transforms: dict[str, Transform]


@precision.kept
def squeeze(
    adapters: Mapping[str, Adapter], policy: Policy, *, method: Method = "auto"
) -> Squeezed:
    """Zero the dropped components of each adapter, in the same shapes.

    The factors are balanced, `|scale| a'^T a' = |scale| b' b'^T = S`. A dropped
    component is a zero column of `a'` and a zero row of `b'`. Both have no gradient, so
    it stays dropped under any optimizer that leaves zeros alone, even if a later budget
    is larger. Do not squeeze before the first steps: while `b` is still zero from its
    initialisation, nothing would be left to train.

    At full budget the update stays the same, and so does the change of the loss that
    projected momentum predicts. For gradient descent with momentum, all later updates
    stay the same too if `a^T a = b b^T` was true already: then `l` is orthogonal.
    Otherwise, and for optimizers that treat each entry separately, the balanced factors
    train differently, as any other factors of the same update would.

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
      adapters: The adapters by path, as from `from_params`; the trained tree itself may
        be such a mapping.
      policy: The budget or cutoff. A traced value does not compile anew.
      method: See `decompose`.

    Raises:
      ValueError: as `decompose` and `masks`.
    """
    spectra = decompose(adapters, method=method)
    kept = masks(spectra, policy)
    new: dict[str, Adapter] = {}
    transforms: dict[str, Transform] = {}
    for batch in batches(spectra, kept, adapters):
        left, right = repack_traced.in_place(batch.spectrum, batch.mask)
        root, signed = _joined_roots(batch, left.dtype)
        left, right = left / root, right / signed
        # Otherwise XLA may shard these r x r matrices like the factors, and move those.
        left, right = sharding.replicated((left, right))
        made = sharding.in_place(
            functools.partial(_child, batch),
            *(batch.adapters, left, right),
            out=batch.places,
        )
        for path, (a, b) in made.items():
            new[path] = dataclasses.replace(adapters[path], a=a, b=b)
        # Transposed before the split, so that `project_moments` undoes a split alone.
        of_a, of_b = batch.whole.split(right.mT), batch.whole.split(left.mT)
        transforms |= {p: Transform(a=x, b=of_b[p], parent=p) for p, x in of_a.items()}
    return Squeezed(
        {path: new[path] for path in adapters},
        {path: transforms[path] for path in adapters},
    )


def shrink(
    adapters: Adapters,
    policy: Policy,
    *,
    form: Literal["padded", "ragged"] = "ragged",
    method: Method = "auto",
) -> Squeezed:
    """Return the adapters at their new ranks, as smaller NumPy factors.

    The product equals that of `squeeze`; `form` is as in `repack`, and a module that
    keeps nothing is absent. Ranks are exact, as in `compress`. The children of
    `compress` differ in two ways only: their scale is 1, and their signs are fixed.

    A share counts the ranks that are left: shrinking twice by `Gamma(0.5)` leaves a
    quarter, while squeezing twice leaves a half. Runs on the host.

    Example:
      >>> small, transforms = para_jax.shrink(adapters, para_jax.Gamma(0.5))
      >>> {path: x.a.shape for path, x in small.items()}
      {'down': (7, 1), 'up': (5, 2)}
      >>> transforms["up"].a.shape  # What project_moments multiplies moments with.
      (4, 2)

    Args:
      adapters: The adapters by path, concrete.
      policy: The budget or cutoff.
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
        left, right = _pair(adapter, spectra[path], kept[path])
        ranks = kept[path].sum(-1)
        for index in [()] if form == "padded" else np.ndindex(adapter.stack):
            # The components are sorted, so a kernel keeps the leading ones.
            if (rank := int(ranks[index].max())) == 0:
                continue
            pair = left[index][..., :rank], right[index][..., :rank, :]
            name = member(path, index)
            new[name] = _kernel(adapter, index, *pair)
            transforms[name] = _transform(path, index, *pair)
    return Squeezed(new, transforms)


def _roots(scale: float) -> tuple[float, float]:
    """Return what `left` and `right` are divided by, of one module."""
    root = math.sqrt(abs(scale)) or 1.0  # A scale of 0 keeps nothing anyway.
    return root, math.copysign(root, scale)


def _joined_roots(batch: Batch, dtype: Any) -> list[np.ndarray]:
    """Return `_roots` of all rows, `[L, 1, 1]`."""
    roots = {path: _roots(x.scale) for path, x in batch.adapters.items()}
    return [
        batch.whole.join(
            {
                path: np.full((*x.stack, 1, 1), roots[path][i], dtype)
                for path, x in batch.adapters.items()
            }
        )
        for i in range(2)
    ]


def _child(
    batch: Batch, adapters: Mapping[str, Adapter], left: jax.Array, right: jax.Array
) -> dict[str, Pair]:
    return batch.products(adapters, left, right, dtype=None)


def _pair(
    adapter: Adapter, spectrum: Spectrum, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return `l` and `r` on the host, with zeros in the dropped columns and rows."""
    root, signed = _roots(adapter.scale)
    left, right = np.asarray(spectrum.left), np.asarray(spectrum.right)
    left = np.where(mask[..., None, :], left / root, 0)
    return left, np.where(mask[..., None], right / signed, 0)


def _transform(path: str, index: tuple[int, ...], left: Any, right: Any) -> Transform:
    return Transform(
        a=right.swapaxes(-1, -2), b=left.swapaxes(-1, -2), parent=path, index=index
    )


def _kernel(
    adapter: Adapter, index: tuple[int, ...], left: np.ndarray, right: np.ndarray
) -> Adapter:
    """Return the kernel `index` of the adapter, or the whole stack, at its new rank."""
    a, b = np.asarray(adapter.a)[index], np.asarray(adapter.b)[index]
    return Adapter(
        a=(a.astype(left.dtype) @ left).astype(a.dtype),
        b=(right @ b.astype(right.dtype)).astype(b.dtype),
        scale=adapter.scale,
    )
