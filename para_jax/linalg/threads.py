"""A few threads for what NumPy computes, and one for each product. Host."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import threadpoolctl

_MOST = 8  # More wait for memory.

_lock = threading.Lock()
_limits: list[Any] = []  # The limit on BLAS, and an entry a call that is under way.

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yields the result of each item, in order, computed a few at a time.

    NumPy's products and factorisations leave the interpreter to other threads.
    """
    pool = futures.ThreadPoolExecutor(min(_cores(), _MOST))
    with _one_thread_a_product():
        try:
            yield from pool.map(function, items)
        finally:  # Also where the loop over the results was left early.
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _one_thread_a_product() -> Iterator[None]:
    """Keeps BLAS from starting threads of its own in each of ours.

    They would wait for one another: an SVD of 64 x 64 takes six times as long. The
    limit is the whole process's, so it ends with the last call that is under way.
    """
    with _lock:
        if not _limits:
            # Looked up anew: SciPy, say, brings a BLAS of its own when it is imported.
            _limits.append(threadpoolctl.threadpool_limits(1, user_api="blas"))
        _limits.append(None)
    try:
        yield
    finally:
        with _lock:
            _limits.pop()
            if len(_limits) == 1:
                _limits.pop().restore_original_limits()


def _cores() -> int:
    with contextlib.suppress(AttributeError):  # On Linux alone.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
