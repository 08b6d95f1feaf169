"""Spectrum and masks, made adapters again.

`masked` is traced: the shapes stay, dropped components are zero, and one compiled
program serves every policy. `padded` and `ragged` are for the host, since a rank
becomes a shape: made on the device at one width, then sliced.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from para_jax import host, linalg, placed, sharding
from para_jax.adapters import Adapter, member
from para_jax.core import SIGNING
from para_jax.groups import Group, Progress, all_pieces, groups
from para_jax.spectrum import Spectra, Spectrum

Form = Literal["masked", "padded", "ragged"]
Masks = Mapping[str, Any]
Selection = Callable[[Spectrum, Array], tuple[Array, Array]]
Packed = Iterator[tuple[str, tuple[int, ...], Adapter]]


def repack(
    spectra: Spectra,
    masks: Masks,
    adapters: Mapping[str, Adapter],
    *,
    form: Form = "masked",
    progress: Progress = iter,
) -> dict[str, Adapter]:
    """Returns the child: the kept components as balanced factors of scale 1.

    With `U_k S_k V_k^T` the kept part of an update, `a_hat^T a_hat = b_hat b_hat^T =
    S_k` and `a_hat @ b_hat` is that part (Eq. 3). The largest of the first 512 entries
    of each row of `b_hat` is positive, so equal updates give equal files.

    - `masked`: the parent's shapes, dropped components zero. Traced.
    - `padded`: the parent's paths and stacks, each at the largest rank kept in its
      stack, zeros beyond a kernel's own. What a scanned model takes.
    - `ragged`: every kernel at its own rank, stacks unstacked (see
      `para_jax.unstack`).

    In `padded` and `ragged` a module that keeps nothing is absent. On a mesh of
    devices, children are divided as their parents are, but for the rank axis.

    Example:
      >>> child = para_jax.repack(spectra, masks, adapters, form="ragged")
      >>> params = para_jax.to_params(child)  # Nested: for Flax, and for Orbax.

    Args:
      spectra: From `decompose`.
      masks: From `masks`, or any booleans of the same shapes.
      adapters: The parent that was decomposed.
      form: The form of the child.
      progress: What to wrap the loop over the modules in for `padded` and `ragged`,
        such as `tqdm.tqdm`.

    Returns:
      Adapters in the dtype that `spectra` name, the parent's. NumPy arrays for
      `padded` and `ragged`, unless the parent is on a mesh.

    Raises:
      ValueError: if the paths or shapes of the three arguments differ, the form is
        unknown, or it needs ranks while they are traced.
    """
    _check(spectra, masks, adapters)
    if form == "masked":
        return _apply(spectra, masks, adapters, _in_place)
    if form not in ("padded", "ragged"):
        raise ValueError(
            f"Unknown form {form!r}: expected 'masked', 'padded' or 'ragged'."
        )
    leaves = jax.tree.leaves((dict(spectra), dict(masks), dict(adapters)))
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        raise ValueError(
            f"form='{form}' makes shapes of ranks, which are not known while tracing. "
            "Call it outside jit, or use form='masked'."
        )
    ranks = {p: np.asarray(np.sum(mask, axis=-1)) for p, mask in masks.items()}
    there = dict(_packed_on_mesh(spectra, masks, adapters))
    rest = {path: x for path, x in adapters.items() if path not in there}
    here = {path: spectra[path] for path in rest}
    packed = (host.kernels if host.serves(rest) else _packed)(
        here, masks, rest, progress
    )
    result = (_stacks if form == "padded" else _kernels)(packed, here, ranks)
    for path, child in there.items():
        result |= placed.cut(path, child, adapters[path], ranks[path], form)
    return result


def pack(
    spectra: Spectra,
    masks: Masks,
    adapters: Mapping[str, Adapter],
    *,
    width: int,
) -> dict[str, Adapter]:
    """Returns the child with its kept components in the first `width` columns. Traced.

    The part of `padded` that `jit` can do: `width` is static, a rank is not. Zeros
    fill what a kernel does not need; components beyond `width` are lost. A module
    with fewer than `width` components gets as many columns as it has.
    """
    _check(spectra, masks, adapters)
    return _apply(spectra, masks, adapters, functools.partial(_in_front, width=width))


def _check(spectra: Spectra, masks: Masks, adapters: Mapping[str, Adapter]) -> None:
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


def _apply(
    spectra: Spectra,
    masks: Masks,
    adapters: Mapping[str, Adapter],
    selection: Selection,
) -> dict[str, Adapter]:
    """Returns the child of the components that `selection` puts into its columns."""
    result: dict[str, Adapter] = {}
    for together in _of_one_form(spectra, adapters):
        part = {path: adapters[path] for path in together.stacks}
        spectrum = jax.tree.map(jnp.asarray, _joined(together, spectra))
        args = spectrum, jnp.asarray(together.join(masks)), part
        child = functools.partial(_child, together, selection)
        places = {path: sharding.places(x) for path, x in part.items()}
        made = sharding.in_place(child, *args, out=places)
        result |= {path: Adapter(a=a, b=b) for path, (a, b) in made.items()}
    return {path: result[path] for path in adapters}


def _of_one_form(spectra: Spectra, adapters: Mapping[str, Adapter]) -> list[Group]:
    """Returns the paths of equal ranks and dtypes: their r x r part is one batch."""
    found: dict[tuple[object, ...], dict[str, tuple[int, ...]]] = {}
    for path, x in spectra.items():
        mesh = sharding.mesh_of(adapters[path])
        apart = mesh if mesh is None else path
        key = (x.rank, x.s.shape[-1], x.s.dtype, x.dtype, apart)
        found.setdefault(key, {})[path] = x.s.shape[:-1]
    return [Group(stacks, apart=key[-1] is not None) for key, stacks in found.items()]


def _child(
    together: Group,
    selection: Selection,
    spectrum: Spectrum,
    mask: Array,
    adapters: Mapping[str, Adapter],
) -> dict[str, tuple[Array, Array]]:
    left, right = selection(spectrum, mask)
    sign = _signs(right, together, {path: x.b for path, x in adapters.items()})
    left, right = left * sign[..., None, :], right * sign[..., :, None]
    left, right = map(together.split, sharding.replicated((left, right)))
    result: dict[str, tuple[Array, Array]] = {}
    for group in groups(adapters):
        joined = _joined(group, adapters)
        a, b = jnp.asarray(joined.a), jnp.asarray(joined.b)
        columns, rows = group.join(left), group.join(right)
        a = linalg.applied(a, columns, tall=True, dtype=spectrum.dtype)
        b = linalg.applied(b, rows, tall=False, dtype=spectrum.dtype)
        pairs = zip(group.split(a).items(), group.split(b).values(), strict=True)
        result |= {path: (one_a, one_b) for (path, one_a), one_b in pairs}
    return result


def _joined(group: Group, values: Mapping[str, Any], rows: slice = slice(None)) -> Any:
    """Returns one Adapter or Spectrum for the whole group, or for some rows of it."""
    members = [values[path] for path in group.stacks]
    leaves = zip(*(jax.tree.leaves(x) for x in members), strict=True)
    joined = [group.join(dict(zip(group.stacks, x, strict=True)), rows) for x in leaves]
    return jax.tree.unflatten(jax.tree.structure(members[0]), joined)


def _signs(
    right: Float[Array, "*stack w r"], together: Group, b: Mapping[str, Any]
) -> Float[Array, "*stack w"]:
    """Returns the signs that make equal updates equal children.

    A decomposition leaves the sign of a component open, differently on each platform.
    The largest of the first entries of each row of the new `b` shall be positive.
    """
    if together.apart:  # On a mesh a piece of `b` would have to be moved.
        first = together.join(b)
    else:
        width = min(SIGNING, max(x.shape[-1] for x in b.values()))
        first = together.join({p: _first(jnp.asarray(x), width) for p, x in b.items()})
    row = linalg.applied(first, right, tall=False, dtype=right.dtype)
    row = jnp.where(jnp.arange(row.shape[-1]) < SIGNING, row, 0)
    negative = jnp.max(row, axis=-1) < -jnp.min(row, axis=-1)
    return jnp.where(negative, -1, 1).astype(right.dtype)


def _first(x: Float[Array, "*stack r n"], width: int) -> Float[Array, "*stack r w"]:
    """Returns the first columns, and zeros where there are fewer."""
    x = x[..., :width]
    more = [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, [*more, (0, width - x.shape[-1])])


def _in_place(
    spectrum: Spectrum, mask: Bool[Array, "*stack k"]
) -> tuple[Float[Array, "*stack r r"], Float[Array, "*stack r r"]]:
    """Returns `left` and `right`, each kept component in its column."""
    left = jnp.where(mask[..., None, :], spectrum.left, 0)
    right = jnp.where(mask[..., :, None], spectrum.right, 0)
    still = [(0, 0)] * (mask.ndim - 1)
    more = (0, spectrum.rank - mask.shape[-1])
    return jnp.pad(left, [*still, (0, 0), more]), jnp.pad(right, [*still, more, (0, 0)])


def _in_front(
    spectrum: Spectrum, mask: Bool[Array, "*stack k"], *, width: int
) -> tuple[Float[Array, "*stack r w"], Float[Array, "*stack w r"]]:
    """Returns `left` and `right`, the kept components in the first columns."""
    column = jnp.cumsum(mask, axis=-1) - 1
    width = min(width, mask.shape[-1])
    chosen = mask[..., None] & jax.nn.one_hot(column, width, dtype=bool)
    source, some = jnp.argmax(chosen, axis=-2), chosen.any(-2)
    left = jnp.take_along_axis(spectrum.left, source[..., None, :], axis=-1)
    right = jnp.take_along_axis(spectrum.right, source[..., :, None], axis=-2)
    return jnp.where(some[..., None, :], left, 0), jnp.where(some[..., None], right, 0)


@functools.partial(jax.jit, static_argnames="width")
def _pack(
    spectra: Spectra, masks: Masks, adapters: Mapping[str, Adapter], *, width: int
) -> dict[str, Adapter]:
    return pack(spectra, masks, adapters, width=width)


def _packed(
    spectra: Spectra,
    masks: Masks,
    adapters: Mapping[str, Adapter],
    progress: Progress,
) -> Packed:
    """Yields every kernel that keeps something, with its path and its index.

    A group of equal shapes is computed piece by piece, joined and split outside of the
    program, with a power of two as common width: so few programs are compiled, they
    serve many budgets, and no child is ever held at more than its own size.
    """
    for group, rows in progress(all_pieces(adapters)):
        width = _width(masks[path] for path in group.stacks)
        mask = np.asarray(group.join(masks, rows))
        joined = _joined(group, spectra, rows), mask, _joined(group, adapters, rows)
        packed = jax.device_get(_pack(*({"": x} for x in joined), width=width))[""]
        a, b = (x.reshape(-1, *x.shape[-2:]) for x in (packed.a, packed.b))
        kept = mask.sum(-1).reshape(-1)
        found = zip(group.members()[rows], a, b, kept, strict=True)
        for (path, index), one_a, one_b, rank in found:
            # Copies, as a view would keep all that its piece was made of.
            if rank:
                kernel = Adapter(a=one_a[:, :rank].copy(), b=one_b[:rank].copy())
                yield path, index, kernel


def _packed_on_mesh(
    spectra: Spectra, masks: Masks, adapters: Mapping[str, Adapter]
) -> Iterator[tuple[str, Adapter]]:
    """Yields every stack that is on a mesh of devices."""
    for path, adapter in adapters.items():
        if sharding.mesh_of(adapter) is not None:
            # One name for all, so that equal shapes share a program.
            one = {"": spectra[path]}, {"": masks[path]}, {"": adapter}
            yield path, _pack(*one, width=_width([masks[path]]))[""]


def _width(masks: Iterable[Any]) -> int:
    """Returns a power of two, so that a program serves many budgets."""
    most = max(int(mask.sum(-1).max()) for mask in masks)
    return 1 << max(most - 1, 0).bit_length()


def _stacks(
    packed: Packed, spectra: Spectra, ranks: Mapping[str, np.ndarray]
) -> dict[str, Adapter]:
    """Returns each stack at its largest rank, zeros beyond that of a kernel."""
    result = {
        path: _zeros(spectrum, int(ranks[path].max()))
        for path, spectrum in spectra.items()
        if ranks[path].any()
    }
    for path, index, kernel in packed:
        result[path].a[index][:, : kernel.rank] = kernel.a
        result[path].b[index][: kernel.rank] = kernel.b
    return result


def _kernels(
    packed: Packed, spectra: Spectra, ranks: Mapping[str, np.ndarray]
) -> dict[str, Adapter]:
    """Returns each kernel by itself, at its own rank."""
    cut = {(path, index): kernel for path, index, kernel in packed}
    return {
        member(path, index): cut[path, index]
        for path in spectra
        for index in np.ndindex(ranks[path].shape)
        if ranks[path][index]
    }


def _zeros(spectrum: Spectrum, rank: int) -> Adapter:
    """Returns factors to be filled in."""
    (m, n), stack = spectrum.shape, spectrum.s.shape[:-1]
    a, b = (np.zeros((*stack, *x), spectrum.dtype) for x in [(m, rank), (rank, n)])
    return Adapter(a=a, b=b)
