"""Measure time on a device, and the bandwidth of its memory."""

import concurrent.futures
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks import cases

_QUICK = 0.1  # Seconds; slower calls are not worth many repetitions.
_BATCH = 0.02  # The total seconds of one batch of calls queued back to back.
_TOTAL = 2.0  # The seconds to spend on one row.


def first(call: Callable[[int], Any], wait: Callable[[Any], Any]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    wait(call(0))
    return time.perf_counter() - start


def median(
    call: Callable[[int], Any], wait: Callable[[Any], Any], limit: float
) -> float:
    """Return the median seconds of a warm call.

    Calls under 100 ms are repeated 5 to 30 times, slower ones three times, or once. On
    an accelerator, calls below 20 ms are queued in batches of up to 50 with one wait at
    the end, so that the device's time is measured and not the time to start a program
    from Python; the result is then the median of the batches' means.

    Args:
      call: Starts the work; its argument counts the calls.
      wait: Waits for the result of `call`.
      limit: The total seconds for slow calls.
    """
    once = first(call, wait)
    if once > _QUICK:
        repeats = 3 if 3 * once < limit else 1
        return statistics.median(first(call, wait) for _ in range(repeats))
    queued = 1 if jax.default_backend() == "cpu" else _limited(_BATCH / once, 1, 50)
    times = []
    for _ in range(_limited(_TOTAL / (queued * once), 5, 30)):
        start = time.perf_counter()
        for i in range(queued):
            result = call(i)
        wait(result)
        times.append((time.perf_counter() - start) / queued)
    return statistics.median(times)


def _limited(x: float, low: int, high: int) -> int:
    return int(min(max(x, low), high))


def bandwidth() -> float:
    """Return the median bandwidth of a copy: bytes read and written per second.

    The target was written before, since page allocation by the operating system is not
    part of a copy. The traffic is at least four times the cache. On an accelerator the
    copies are queued back to back, like the calls that they are compared with.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = max(2 * cache(), 2**28 if on_cpu else 2**31)
    copy, wait = (_copy_on_host if on_cpu else _copy_on_device)(size)
    first(copy, wait)
    return 2 * size / median(copy, wait, limit=10)


def _copy_on_device(size: int) -> tuple[Callable[[int], Any], Callable[[Any], Any]]:
    negate = jax.jit(lambda x, _: -x, donate_argnums=1, keep_unused=True)
    source, target = (jnp.full(size // 4, x, jnp.float32) for x in (1, 2))

    def copy(_: int) -> jax.Array:
        nonlocal target
        target = negate(source, target)
        return target

    jax.block_until_ready((source, target))
    return copy, jax.block_until_ready


def _copy_on_host(size: int) -> tuple[Callable[[int], Any], Callable[[Any], Any]]:
    # NumPy copies without first reading the memory that it overwrites.
    cores = os.cpu_count() or 1
    source, target = (np.full((cores, size // cores), x, np.int8) for x in (1, 2))
    threads = concurrent.futures.ThreadPoolExecutor(cores)
    return lambda _: threads.map(np.copyto, target, source), list


def cache() -> int:
    """Return the bytes of the device's last-level cache; 64 MiB if it is unknown."""
    if jax.default_backend() == "cpu":
        found = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        sizes = [x.read_text().strip() for x in found]
        return max((1024 * int(x[:-1]) for x in sizes if x[-1:] == "K"), default=2**26)
    try:
        import torch

        return torch.cuda.get_device_properties(0).L2_cache_size
    except (ImportError, AttributeError, AssertionError, RuntimeError):
        return 2**26


def copies(tree: Any, most: int) -> list[Any]:
    """Repeat `tree` often enough that no copy is still in the cache when reused.

    The benchmark measures an accelerator's memory, and an adapter of a small model fits
    into its cache. On a shared machine the CPU reports a much larger cache than a guest
    can use, so `most` limits the number of copies.
    """
    count = _limited(math.ceil(2 * cache() / cases.nbytes(tree)), 1, most)
    return [tree, *(jax.tree.map(jnp.copy, tree) for _ in range(count - 1))]


def interleaved(
    calls: Mapping[Any, Callable[[], Any]], *, limit: float
) -> dict[Any, list[float]]:
    """Return the seconds of each call, measured in rounds of all calls in turn.

    Any other load on the machine varies over time; interleaving exposes all calls to it
    alike, which keeps their ratios valid. Quick calls are queued as in `median`.

    Args:
      calls: Start the work; already warm.
      limit: The approximate seconds to spend; there are 3 to 20 rounds.
    """
    once = {x: _queued(call, 1) for x, call in calls.items()}
    on_cpu = jax.default_backend() == "cpu"
    counts = {x: 1 if on_cpu else _limited(_BATCH / s, 1, 50) for x, s in once.items()}
    total = sum(once[x] * counts[x] for x in calls)
    times: dict[Any, list[float]] = {x: [] for x in calls}
    for _ in range(_limited(limit / total, 3, 20)):
        for x, call in calls.items():
            times[x].append(_queued(call, counts[x]))
    return times


def _queued(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / count
