"""Load one tenant's adapter from host memory into its place in a device's bank.

The bank is donated and thus changed in place. An adapter is transferred as one buffer,
packed at load time and split into factors on the device, or as two arrays per module.
In a padded bank its place is one slice of each array. In a paged bank it can be any
free rows, and their indices are transferred too. One program serves every rank map: it
splits off the largest rank of each module, and drops the rows beyond a tenant's own.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks import backbones, banks
from tests.benchmarks.banks import Pair
from tests.benchmarks.serve_rows import Swap
from tests.benchmarks.serving import Fleet

ROUNDS = 12
NOWHERE = np.iinfo(np.int32).max
Adapter = Mapping[str, Pair]


def swaps(fleet: Fleet) -> Iterator[Swap]:
    """Yield the time of a swap for each layout and each form of transfer."""
    tenants = range(min(ROUNDS, fleet.tenants))
    for adapters in ("parent", "child"):
        widths = _widths(fleet, adapters)
        loads = [(filled(_adapter(fleet, adapters, t), widths), t) for t in tenants]
        layout = "parent" if adapters == "parent" else "child, padded"
        timed = functools.partial(_timed, fleet, layout, adapters, banks.padded)
        yield timed("two arrays a module", place_padded, loads)
        shapes = jax.tree.map(np.shape, loads[0][0])
        packed = [(pack(jax.tree.leaves(x)), t) for x, t in loads]
        yield timed("one buffer", functools.partial(place_packed, shapes), packed)
    ranks, widths = fleet.adapted("child"), _widths(fleet, "child")
    size = _capacity(fleet, ranks)
    rows = {path: banks.table(x) for path, x in ranks.items()}
    loads = [
        paged_load(_adapter(fleet, "child", t), {x: rows[x][t] for x in rows}, size)
        for t in tenants
    ]
    place = functools.partial(place_paged, widths)
    timed = functools.partial(_timed, fleet, "child, ragged", "child", banks.paged)
    yield timed("one buffer", place, loads)


def place_padded(bank: Adapter, load: tuple[Any, Any]) -> Adapter:
    """Return `bank` with an adapter in the place of tenant `load[1]`.

    Traceable under `jit`.
    """
    new, tenant = load
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    return jax.tree.map(lambda x, y: put(x, y, tenant), bank, new)


def place_packed(
    shapes: Mapping[str, Pair], bank: Adapter, load: tuple[Any, Any]
) -> Adapter:
    """Return `bank` with an adapter from one buffer in its tenant's place.

    Traceable under `jit`.
    """
    buffer, tenant = load
    leaves, form = jax.tree.flatten(shapes, is_leaf=lambda x: type(x) is tuple)
    ends = list(itertools.accumulate(r * width for r, width in leaves))
    parts = jnp.split(buffer, ends[:-1])
    factors = [x.reshape(shape) for x, shape in zip(parts, leaves, strict=True)]
    return place_padded(bank, (jax.tree.unflatten(form, factors), tenant))


def place_paged(widths: Mapping[str, int], bank: Adapter, load: Any) -> Adapter:
    """Return `bank` with an adapter in rows of its own.

    Traceable under `jit`.

    Args:
      widths: The largest rank of each module.
      bank: Made by `banks.paged`.
      load: Made by `paged_load`.
    """
    buffer, begin, rows = load
    result, at, i = {}, 0, 0
    for path, r in widths.items():
        mine, factors = rows[at : at + r], []
        for x in bank[path]:
            values = begin[i] + jnp.arange(r * x.shape[1]).reshape(r, -1)
            part = buffer.at[values].get(mode="clip")  # Dropped beyond its rank.
            factors.append(x.at[mine].set(part, mode="drop"))
            i += 1
        result[path], at = Pair(*factors), at + r
    return result


def paged_load(adapter: Adapter, rows: Mapping[str, np.ndarray], size: int) -> Any:
    """Return the transfer to a paged bank: buffer, starts of factors, rows.

    Runs on the host.

    Args:
      adapter: The factors, `a: [r, m]` and `b: [r, n]`.
      rows: The target rows in the bank, `[R]`, filled up with 0.
      size: The buffer's length, enough for any tenant.
    """
    leaves = [x for path in rows for x in adapter[path]]
    packed = pack(leaves)
    begin = list(itertools.accumulate((x.size for x in leaves[:-1]), initial=0))
    places = np.concatenate([np.where(x > 0, x, NOWHERE) for x in rows.values()])
    buffer = np.pad(packed, (0, size - packed.size))
    return buffer, np.array(begin, np.int32), places.astype(np.int32)


def pack(leaves: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.ravel() for x in leaves])


def filled(adapter: Adapter, widths: Mapping[str, int]) -> dict[str, Pair]:
    """Pad the adapter with zeros to the largest rank of each module."""
    return {
        path: Pair(*(np.pad(x, ((0, widths[path] - len(x)), (0, 0))) for x in pair))
        for path, pair in adapter.items()
    }


def _adapter(fleet: Fleet, adapters: str, tenant: int) -> dict[str, Pair]:
    def factors(path: str, ranks: np.ndarray) -> Pair:
        shape, dtype = fleet.backbone.kernels[path], fleet.backbone.dtype
        return Pair(*backbones.factors(*shape, ranks[[tenant]], dtype))

    return {x: factors(x, ranks) for x, ranks in fleet.adapted(adapters).items()}


def _widths(fleet: Fleet, adapters: str) -> dict[str, int]:
    return {path: int(x.max()) for path, x in fleet.adapted(adapters).items()}


def _capacity(fleet: Fleet, ranks: Mapping[str, np.ndarray]) -> int:
    kernels = fleet.backbone.kernels
    return int(np.max(sum(x * sum(kernels[path]) for path, x in ranks.items())))


def _timed(
    fleet: Fleet,
    layout: str,
    adapters: str,
    make: Callable[..., Any],
    form: str,
    place: Callable[[Any, Any], Any],
    loads: Sequence[Any],
) -> Swap:
    program = jax.jit(place, donate_argnums=0)
    bank = jax.tree.map(jnp.copy, fleet.bank(adapters, make))
    bank = jax.block_until_ready(program(bank, jax.device_put(loads[0])))
    transfers, times = [], []
    for load in loads:
        start = time.perf_counter()
        jax.block_until_ready(jax.device_put(load))
        transfers.append(time.perf_counter() - start)
        start = time.perf_counter()
        bank = jax.block_until_ready(program(bank, jax.device_put(load)))
        times.append(time.perf_counter() - start)
    return Swap(
        model=fleet.backbone.name,
        modules=len(fleet.adapted(adapters)),
        layout=layout,
        form=form,
        bytes=sum(np.asarray(x).nbytes for x in jax.tree.leaves(loads[0])),
        transfer_ms=1e3 * statistics.median(transfers),
        ms=1e3 * statistics.median(times),
    )
