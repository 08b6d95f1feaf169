"""The spectra of a whole model, by the way that its place asks for. Host.

Factors in host memory, where JAX would compute on the CPU, go to NumPy; all others to
one program a batch of them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from para_jax._adapters.adapter import Adapter, Adapters
from para_jax._adapters.precision import wide
from para_jax._pruning.batches import Group, Progress, batches, groups
from para_jax._pruning.decompose import Spectrum, decompose
from para_jax.linalg import numpy_products, threads
from para_jax.linalg.products import Method


def joined_spectra(
    adapters: Adapters, method: Method, progress: Progress
) -> Iterator[tuple[Group, Spectrum]]:
    """Yields the groups of equal shapes, and the spectra of each as NumPy arrays.

    A program for joined adapters compiles faster than one that names each; and their
    scales stay outside, so that adapters that differ in alpha alone share a program.
    """
    if on_host := serves(adapters):
        adapters = jax.tree.map(np.asarray, dict(adapters))
    found = groups(adapters)
    todo = batches(found, adapters)

    def one(batch: Sequence[tuple[int, slice]]) -> list[Spectrum]:
        pieces = [(found[i], rows) for i, rows in batch]
        return decompose_pieces(pieces, adapters, method)

    decompose_pieces = _numpy_pieces if on_host else _decompose_pieces
    results = threads.in_threads(one, todo) if on_host else map(one, todo)
    parts: list[list[Spectrum]] = [[] for _ in found]
    for batch, spectra in zip(progress(todo), results, strict=True):
        for (i, _), spectrum in zip(batch, spectra, strict=True):
            parts[i].append(spectrum)
    for group, spectra in zip(found, parts, strict=True):
        whole = jax.tree.map(lambda *x: np.concatenate(x), *spectra)
        scales = [float(adapters[path].scale) for path, _ in group.members()]
        yield group, _scaled(whole, np.asarray(scales))


def _decompose_pieces(
    pieces: Sequence[tuple[Group, slice]], adapters: Adapters, method: Method
) -> list[Spectrum]:
    joined = {
        str(i): Adapter(
            a=group.join({path: adapters[path].a for path in group.stacks}, rows),
            b=group.join({path: adapters[path].b for path in group.stacks}, rows),
        )
        for i, (group, rows) in enumerate(pieces)
    }
    with wide():
        spectra = jax.device_get(_decompose(joined, method=method))
    return [spectra[str(i)] for i in range(len(pieces))]


_decompose = jax.jit(decompose, static_argnames="method")


def _scaled(spectrum: Spectrum, scale: Float[np.ndarray, " L"]) -> Spectrum:
    """Returns the spectra of `scale` times the updates."""
    scale = scale.reshape(*spectrum.s.shape[:-1], 1, 1)
    root = np.sqrt(np.abs(scale))
    return dataclasses.replace(
        spectrum,
        s=spectrum.s * np.abs(scale[..., 0]),
        left=spectrum.left * np.copysign(root, scale),
        right=spectrum.right * root,
    )


def serves(adapters: Mapping[str, Adapter]) -> bool:
    """Returns whether NumPy is the way: factors that JAX would compute with on CPU."""
    if jax.default_backend() != "cpu":
        return False
    factors = [x for adapter in adapters.values() for x in (adapter.a, adapter.b)]
    return all(isinstance(x, np.ndarray) or len(x.devices()) == 1 for x in factors)


def _numpy_pieces(
    pieces: Sequence[tuple[Group, slice]],
    adapters: Mapping[str, Adapter],
    method: Method,
) -> list[Spectrum]:
    """Returns the spectra of the kernels of each piece, joined, of scale 1."""
    return [_spectrum(group, rows, adapters, method) for group, rows in pieces]


def _spectrum(
    group: Group, rows: slice, adapters: Mapping[str, Adapter], method: Method
) -> Spectrum:
    members = group.members()[rows]
    a = [np.asarray(adapters[path].a)[index] for path, index in members]
    b = [np.asarray(adapters[path].b)[index] for path, index in members]
    s, left, right = numpy_products.decompose(a, b, method=method)
    return Spectrum(
        s=s,
        left=left,
        right=right,
        shape=(len(a[0]), b[0].shape[-1]),
        dtype=a[0].dtype.name,
        nominal=s.shape[-1],
    )
