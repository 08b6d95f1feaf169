"""Children in static shapes: chosen columns of both factors.

Which components a policy keeps is only known when a program runs. So a child is made
either in the parent's columns, zeros for dropped ones, or with the kept ones in front,
in a static number of columns.

Traceable under `jit`; `repack_numpy.py` is the counterpart for the host.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from para_jax._adapters import precision
from para_jax._adapters.adapter import Adapter
from para_jax._pruning.decompose import Spectra, Spectrum
from para_jax._pruning.repack_batches import Batch, Pair, batches
from para_jax.linalg import cores, factorize, sharding
from para_jax.linalg.tolerances import SIGNING

Masks = Mapping[str, Any]
Selection = Callable[[Spectrum, Array], tuple[Array, Array]]


def mask(
    spectra: Spectra, masks: Masks, adapters: Mapping[str, Adapter]
) -> dict[str, Adapter]:
    """Make the child in the parent's shapes, dropped components zero."""
    check(spectra, masks, adapters)
    return _apply(spectra, masks, adapters, in_place)


@precision.kept
def pack(
    spectra: Spectra,
    masks: Masks,
    adapters: Mapping[str, Adapter],
    *,
    width: int,
) -> dict[str, Adapter]:
    """Make the child with its kept components in the first `width` columns.

    The part of `padded` that `jit` can do: `width` is static, a rank is not. Zeros
    fill the columns beyond a kernel's rank; components beyond `width` are lost. A
    module with fewer than `width` components gets as many columns as it has.
    Traceable under `jit`.

    Example:
      >>> spectra = para_jax.decompose(adapters)
      >>> masks = para_jax.masks(spectra, para_jax.Gamma(0.5))
      >>> narrow = jax.jit(para_jax.pack, static_argnames="width")
      >>> {p: x.rank for p, x in narrow(spectra, masks, adapters, width=3).items()}
      {'down': 2, 'up': 3}
    """
    check(spectra, masks, adapters)
    return _apply(spectra, masks, adapters, functools.partial(_in_front, width=width))


def _apply(
    spectra: Spectra,
    masks: Masks,
    adapters: Mapping[str, Adapter],
    selection: Selection,
) -> dict[str, Adapter]:
    """Make the child of selected components, a rank at a time."""
    result: dict[str, Adapter] = {}
    for batch in batches(spectra, masks, adapters):
        child = functools.partial(_child, batch, selection)
        args = batch.spectrum, batch.mask, batch.adapters
        made = sharding.in_place(child, *args, out=batch.places)
        result |= {path: Adapter(a=a, b=b) for path, (a, b) in made.items()}
    return {path: result[path] for path in adapters}


def _child(
    batch: Batch,
    selection: Selection,
    spectrum: Spectrum,
    mask: Array,
    adapters: Mapping[str, Adapter],
) -> dict[str, Pair]:
    left, right = selection(spectrum, mask)
    sign = _signs(right, *batch.factors(adapters))
    left, right = left * sign[..., None, :], right * sign[..., :, None]
    left, right = sharding.replicated((left, right))
    # Rounded once more, but to the precision of what they multiply.
    wide = "float64" if spectrum.dtype == "float64" else "float32"
    wide = jax.dtypes.canonicalize_dtype(wide)
    left, right = left.astype(wide), right.astype(wide)
    return batch.products(adapters, left, right, dtype=spectrum.dtype)


def _signs(
    right: Float[Array, "*stack w r"],
    a: Sequence[Sequence[Array]],
    b: Sequence[Sequence[Array]],
) -> Float[Array, "*stack w"]:
    """Return the signs of components, the same for equal updates.

    A decomposition leaves the sign of a component open, differently on each platform.
    `tolerances.SIGNING` has the rule. By reductions alone, which a mesh of devices
    makes without moving a row; an argmax would gather it.

    Args:
      right: What `b` is multiplied by.
      a: The factors of each shape.
      b: Their counterparts.
    """
    first = b[0][0]
    if sharding.mesh_of(b) is None:  # There a piece of `b` would have to be moved.
        width = min(SIGNING, max(x[0].shape[-1] for x in b))
        stack, rank = right.shape[:-2], right.shape[-1]
        first = cores.leading(a, b, width).reshape(*stack, rank, width)
    row = factorize.applied(first, right, tall=False, dtype=right.dtype)
    # Zeros beyond never win: the largest magnitude is above them, or all are zero.
    row = jnp.where(jnp.arange(row.shape[-1]) < SIGNING, row, 0)
    index = jnp.arange(row.shape[-1])

    def first_of(value: Array) -> Array:
        return jnp.where(row == value[..., None], index, len(index)).min(-1)

    most, least = row.max(-1), row.min(-1)
    sooner = first_of(least) < first_of(most)
    negative = (most < -least) | ((most == -least) & sooner)
    return jnp.where(negative, -1, 1).astype(right.dtype)


def in_place(
    spectrum: Spectrum, mask: Bool[Array, "*stack k"]
) -> tuple[Float[Array, "*stack r r"], Float[Array, "*stack r r"]]:
    """Return `left` and `right`, each kept component in its column."""
    left = jnp.where(mask[..., None, :], spectrum.left, 0)
    right = jnp.where(mask[..., :, None], spectrum.right, 0)
    still = [(0, 0)] * (mask.ndim - 1)
    more = (0, spectrum.rank - mask.shape[-1])
    return jnp.pad(left, [*still, (0, 0), more]), jnp.pad(right, [*still, more, (0, 0)])


def _in_front(
    spectrum: Spectrum, mask: Bool[Array, "*stack k"], *, width: int
) -> tuple[Float[Array, "*stack r w"], Float[Array, "*stack w r"]]:
    """Return `left` and `right`, the kept components in the first columns."""
    column = jnp.cumsum(mask, axis=-1) - 1
    width = min(width, mask.shape[-1])
    chosen = mask[..., None] & jax.nn.one_hot(column, width, dtype=bool)
    # An argmax of int64 is lowered in the precision of a later moment.
    source = jax.lax.argmax(chosen, axis=chosen.ndim - 2, index_dtype=np.int32)
    some = chosen.any(-2)  # An argmax of all false is 0, which is a component too.
    left = jnp.take_along_axis(spectrum.left, source[..., None, :], axis=-1)
    right = jnp.take_along_axis(spectrum.right, source[..., :, None], axis=-2)
    return jnp.where(some[..., None, :], left, 0), jnp.where(some[..., None], right, 0)


def check(spectra: Spectra, masks: Masks, adapters: Mapping[str, Adapter]) -> None:
    """Check that spectra, masks and adapters are of one model, else raise."""
    for name, other in (("masks", masks), ("adapters", adapters)):
        if difference := sorted(other.keys() ^ spectra.keys()):
            raise ValueError(
                f"spectra and {name} are of different models: only one of them has "
                f"'{difference[0]}' ({len(difference)} such paths)."
            )
    for path, spectrum in spectra.items():
        adapter = adapters[path]
        form = (adapter.stack, adapter.rank, adapter.inputs, adapter.outputs)
        if form != (spectrum.s.shape[:-1], spectrum.rank, *spectrum.shape):
            raise ValueError(
                f"'{path}': a {list(adapter.a.shape)} and b {list(adapter.b.shape)} "
                "are not the factors that this spectrum is of."
            )
        if masks[path].shape != spectrum.s.shape:
            raise ValueError(
                f"'{path}': expected a mask {list(spectrum.s.shape)}, got "
                f"{list(masks[path].shape)}."
            )
