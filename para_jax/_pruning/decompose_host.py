"""The spectra of a whole model: the host's driver of both back ends.

NumPy decomposes factors in host memory where JAX would compute on the CPU; compiled
programs decompose all others, a batch at a time. The counterpart of the traced
`decompose.py`.

Runs on the host.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from para_jax._adapters.adapter import Adapter, Adapters
from para_jax._adapters.precision import backend, wide
from para_jax._pruning.batches import Group, Progress, batches, groups, share, workers
from para_jax._pruning.decompose import decompose
from para_jax.linalg import numpy_products, threads
from para_jax.linalg.core import Core
from para_jax.linalg.cores import Method


def joined_cores(
    adapters: Adapters, method: Method, progress: Progress
) -> Iterator[tuple[Group, Core]]:
    """Yield the groups of equal shapes, and the cores of each as NumPy arrays.

    A program for joined adapters compiles faster than one that names each; and their
    scales stay outside, so that adapters that differ in alpha alone share a program.
    """
    if on_host := serves(adapters):
        adapters = in_numpy(adapters)
    found = groups(adapters)
    if on_host:
        todo = batches(found, adapters, share(adapters))
    else:
        todo = batches(found, adapters)

    def one(batch: Sequence[tuple[int, slice]]) -> list[Core]:
        pieces = [(found[i], rows) for i, rows in batch]
        return (_by_numpy if on_host else _by_program)(pieces, adapters, method)

    # NumPy's small products leave cores idle; XLA schedules its own.
    results = (
        threads.in_threads(one, todo, most=workers(adapters))
        if on_host
        else map(one, todo)
    )
    parts: list[list[Core]] = [[] for _ in found]
    for batch, cores in zip(progress(todo), results, strict=True):
        for (i, _), core in zip(batch, cores, strict=True):
            parts[i].append(core)
    for group, cores in zip(found, parts, strict=True):
        whole = Core(*(np.concatenate(x) for x in zip(*cores, strict=True)))
        scales = [float(adapters[path].scale) for path, _ in group.members()]
        yield group, _scaled(whole, np.asarray(scales))


def serves(adapters: Mapping[str, Adapter]) -> bool:
    """Return whether to use NumPy, for factors in reach of JAX's CPU backend."""
    if backend() != "cpu":
        return False
    factors = [x for adapter in adapters.values() for x in (adapter.a, adapter.b)]
    return all(isinstance(x, np.ndarray) or len(x.devices()) == 1 for x in factors)


def in_numpy(adapters: Adapters) -> dict[str, Adapter]:
    """Return adapters as NumPy arrays: each index of a jax.Array would be a program."""
    return {
        path: x
        if isinstance(x.a, np.ndarray) and isinstance(x.b, np.ndarray)
        else dataclasses.replace(x, a=np.asarray(x.a), b=np.asarray(x.b))
        for path, x in adapters.items()
    }


def _by_numpy(
    pieces: Sequence[tuple[Group, slice]], adapters: Adapters, method: Method
) -> list[Core]:
    """Return the cores of the kernels of each piece, of scale 1, by NumPy."""
    result = []
    for group, rows in pieces:
        members = group.members()[rows]
        a = [np.asarray(adapters[path].a)[index] for path, index in members]
        b = [np.asarray(adapters[path].b)[index] for path, index in members]
        result.append(numpy_products.decompose(a, b, method=method))
    return result


def _by_program(
    pieces: Sequence[tuple[Group, slice]], adapters: Adapters, method: Method
) -> list[Core]:
    """Return the cores of the kernels of each piece, of scale 1, by one program."""
    # Named by number, not by path: models of equal shapes then share a program.
    joined = {
        str(i): Adapter(
            a=group.join({path: adapters[path].a for path in group.stacks}, rows),
            b=group.join({path: adapters[path].b for path in group.stacks}, rows),
        )
        for i, (group, rows) in enumerate(pieces)
    }
    with wide():
        found = jax.device_get(_decompose(joined, method=method))
    spectra = [found[str(i)] for i in range(len(pieces))]
    return [Core(x.s, x.left, x.right) for x in spectra]


_decompose = jax.jit(decompose, static_argnames="method")


def _scaled(core: Core, scale: Float[np.ndarray, " L"]) -> Core:
    """Return the cores of `scale` times the updates."""
    scale = scale.reshape(*core.s.shape[:-1], 1, 1)
    root = np.sqrt(np.abs(scale))
    return Core(
        s=core.s * np.abs(scale[..., 0]),
        left=core.left * np.copysign(root, scale),  # `a` has the sign.
        right=core.right * root,
    )
