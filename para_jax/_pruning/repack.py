"""Spectrum and masks, made adapters again.

`masked` is traceable under `jit`: the shapes stay, dropped components are zero, and one
compiled program serves every policy. `padded` and `ragged` run on the host, since a
rank becomes a shape: made on the device at one width, then sliced.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters import precision
from para_jax._adapters.adapter import Adapter
from para_jax._adapters.stacks import kernels
from para_jax._pruning import decompose_host, repack_mesh, repack_numpy, repack_traced
from para_jax._pruning.batches import Progress, all_pieces, joined
from para_jax._pruning.decompose import Spectra, Spectrum
from para_jax._pruning.repack_traced import Masks
from para_jax.linalg import sharding

Form = Literal["masked", "padded", "ragged"]
Packed = Iterator[tuple[str, tuple[int, ...], Adapter]]


@precision.kept
def repack(
    spectra: Spectra,
    masks: Masks,
    adapters: Mapping[str, Adapter],
    *,
    form: Form = "masked",
    progress: Progress = iter,
) -> dict[str, Adapter]:
    """Make the child: the kept components as balanced factors of scale 1.

    With `U_k S_k V_k^T` the kept part of an update, `a_hat^T a_hat = b_hat b_hat^T =
    S_k` and `a_hat @ b_hat` is that part (Eq. 3). The largest of the first 512 entries
    of each row of `b_hat` is positive, the first of equal ones, so equal updates give
    equal files.

    - `masked`: the parent's shapes, dropped components zero. Traceable under `jit`.
    - `padded`: the parent's paths and stacks, each at the largest rank kept in its
      stack, zeros beyond a kernel's own. What a scanned model takes.
    - `ragged`: every kernel at its own rank, stacks unstacked (see
      `para_jax.unstack`).

    In `padded` and `ragged` a module that keeps nothing is absent. On a mesh of
    devices, children are divided as their parents are, but for the rank axis.

    Example:
      >>> spectra = para_jax.decompose(adapters)
      >>> masks = para_jax.masks(spectra, para_jax.Gamma(0.5))
      >>> for form in "masked", "ragged":
      ...     child = para_jax.repack(spectra, masks, adapters, form=form)
      ...     print(form, {path: x.rank for path, x in child.items()})
      masked {'down': 2, 'up': 4}
      ragged {'down': 1, 'up': 2}

    Args:
      spectra: From `decompose`.
      masks: From `masks`, or any booleans of the same shapes.
      adapters: The parent that was decomposed.
      form: The form of the child.
      progress: A wrapper for the loop over the modules in `padded` and `ragged`, such
        as `tqdm.tqdm`.

    Returns:
      Adapters in the dtype that `spectra` name, the parent's. NumPy arrays for
      `padded` and `ragged`, unless the parent is on a mesh.

    Raises:
      ValueError: if the paths or shapes of the three arguments differ, the form is
        unknown, or it needs ranks while they are traced.
    """
    if form == "masked":
        return repack_traced.mask(spectra, masks, adapters)
    repack_traced.check(spectra, masks, adapters)
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
    # Parents on a mesh stay there; a child of theirs may not fit into host memory.
    there = dict(_packed_on_mesh(spectra, masks, adapters))
    rest = {path: x for path, x in adapters.items() if path not in there}
    here = {path: spectra[path] for path in rest}
    packed = (repack_numpy.kernels if decompose_host.serves(rest) else _packed)(
        here, masks, rest, progress
    )
    result = (_stacks if form == "padded" else _kernels)(packed, here, ranks)
    for path, child in there.items():
        result |= repack_mesh.cut(path, child, adapters[path], ranks[path], form)
    return result


@functools.partial(jax.jit, static_argnames="width")
def _pack(
    spectra: Spectra, masks: Masks, adapters: Mapping[str, Adapter], *, width: int
) -> dict[str, Adapter]:
    # In float64, which costs less than the way to the host: where the parts of an
    # update cancel, float32 loses what is left.
    adapters = jax.tree.map(lambda x: jnp.asarray(x).astype(float), dict(adapters))
    return repack_traced.pack(spectra, masks, adapters, width=width)


def _packed(
    spectra: Spectra,
    masks: Masks,
    adapters: Mapping[str, Adapter],
    progress: Progress,
) -> Packed:
    """Yield the kernels of rank above 0, with path and index.

    A group of equal shapes is computed piece by piece, joined and split outside of the
    program, with a power of two as common width: so few programs are compiled, they
    serve many budgets, and no child is ever held at more than its own size.
    """
    for group, rows in progress(all_pieces(adapters)):
        # Of the whole group, so that all its pieces share a program.
        width = _width(masks[path] for path in group.stacks)
        mask = np.asarray(group.join(masks, rows))
        parts = joined(group, spectra, rows), mask, joined(group, adapters, rows)
        packed = jax.device_get(_pack(*({"": x} for x in parts), width=width))[""]
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
    """Yield every stack on a mesh of devices, packed."""
    for path, adapter in adapters.items():
        if sharding.mesh_of(adapter) is not None:
            # One name for all, so that equal shapes share a program.
            one = {"": spectra[path]}, {"": masks[path]}, {"": adapter}
            yield path, _pack(*one, width=_width([masks[path]]))[""]


def _width(masks: Iterable[Any]) -> int:
    """Return the largest rank, rounded up to a power of two: few programs serve all."""
    most = max(int(mask.sum(-1).max()) for mask in masks)
    return 1 << max(most - 1, 0).bit_length()


def _stacks(
    packed: Packed, spectra: Spectra, ranks: Mapping[str, np.ndarray]
) -> dict[str, Adapter]:
    """Return each stack at its largest rank, zeros beyond a kernel's own."""
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
    """Return each kernel by itself, at its own rank."""
    cut = {(path, index): kernel for path, index, kernel in packed}
    # In the order of the parent: groups of equal shapes came in another one.
    return {
        kernel.name: cut[kernel]
        for kernel in kernels({path: ranks[path].shape for path in spectra})
        if kernel in cut
    }


def _zeros(spectrum: Spectrum, rank: int) -> Adapter:
    """Return factors to be filled in."""
    (m, n), stack = spectrum.shape, spectrum.s.shape[:-1]
    a, b = (np.zeros((*stack, *x), spectrum.dtype) for x in [(m, rank), (rank, n)])
    return Adapter(a=a, b=b)
