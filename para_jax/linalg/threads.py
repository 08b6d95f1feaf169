"""A few threads for NumPy's work, and one for each product.

Runs on the host.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import threadpoolctl

_MOST = 8  # Memory bandwidth limits more threads than this.
_processes = 1

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    most: int | None = None,
) -> Iterator[Result]:
    """Yield the result of each item, in order, computed a few at a time.

    NumPy's products and factorisations release the interpreter lock. Inside of them,
    BLAS runs on one thread.

    Example:
      >>> from para_jax import linalg
      >>> list(linalg.in_threads(np.linalg.norm, [np.ones(4), np.ones(9)]))
      [np.float64(2.0), np.float64(3.0)]

    Args:
      function: The work on one item. Its first error ends the loop.
      items: Read at once, before the first result.
      most: The number of threads, if it is to be less than the cores allow. With 1,
        the caller's own thread does the work.
    """
    count = min(workers(), most or workers())
    with _blas.on_one_thread():
        if count == 1:
            yield from map(function, [*items])
            return
        pool = futures.ThreadPoolExecutor(count)
        try:
            yield from pool.map(function, items)
        finally:  # Also where the loop over the results was left early.
            pool.shutdown(cancel_futures=True)


def share(processes: int) -> None:
    """Leave the other cores to as many processes as compute beside this one.

    To be called once, at the start of such a process.

    Args:
      processes: How many there are, this one included.
    """
    global _processes
    _processes = processes


def workers() -> int:
    """Return the most threads that `in_threads` uses."""
    return max(min(cores() // _processes, _MOST), 1)


class _Blas:
    """A limit on BLAS's own threads, shared by all calls under way.

    The limit belongs to the whole process, so the first call sets it and the last one
    lifts it, whichever order they end in.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._limit: Any = None
        self._modules = -1
        self._libraries: Any = None

    @contextlib.contextmanager
    def on_one_thread(self) -> Iterator[None]:
        """Keep BLAS from starting threads of its own in each of ours.

        They would wait for one another: an SVD of 64 x 64 takes six times as long.
        """
        with self._lock:
            if self._calls == 0:
                if self._modules != len(sys.modules):
                    # Looked up anew: SciPy, say, loads a BLAS of its own on import.
                    # Not every time: that takes as long as 20 small kernels.
                    self._modules = len(sys.modules)
                    self._libraries = threadpoolctl.ThreadpoolController()
                self._limit = self._libraries.limit(limits=1, user_api="blas")
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    self._limit.restore_original_limits()


_blas = _Blas()


def cores() -> int:
    """Return the number of cores that this process may use."""
    with contextlib.suppress(AttributeError):  # On Linux alone.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
