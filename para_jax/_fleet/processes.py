"""A fleet on the cores of one machine: each tenant is a task of a worker process.

Most of a small adapter's time is Python's own: names, checks, the choice, the files.
In one process, threads wait for its interpreter's lock. The workers compute on the CPU:
arithmetic is a fifth of their time, so an accelerator could save no more, and all
factors would have to pass through the one process that has it. Runs on the host.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

import jax

from para_jax._fleet.manifest import Row
from para_jax._fleet.tenants import JOBS, Tenant, Work, size, tend
from para_jax.linalg import threads

LEAST = 64
"""The number of tenants from which processes are worth their start of a second."""

_ROOM = 2**32  # The bytes of all parents in flight; a tenant takes a few times more.


def workers(tenants: Sequence[Tenant]) -> int:
    """Return the default number of tenants in flight: one a core, fewer large ones."""
    largest = max((size(x.source) for x in tenants), default=0)
    return max(min(threads.cores(), _ROOM // max(largest, 1)), JOBS)


def pay(tenants: Sequence[Tenant], jobs: int) -> bool:
    """Decide whether processes end sooner than threads."""
    # Four threads are all that one interpreter keeps busy.
    return jobs > JOBS and len(tenants) >= LEAST


def processes(
    work: Work,
    tenants: Sequence[Tenant],
    *,
    jobs: int,
    begin: Callable[[], None],
) -> Iterator[Row]:
    """Compress tenants in worker processes; yield each row as it ends.

    An interrupt waits for the tenants in flight, and begins no other. Workers end with
    this process, however that ends. Their warnings are given here.

    Args:
      work: The unit of work; it is sent to other processes.
      tenants: The tenants to compress.
      jobs: The number of workers.
      begin: Called once in each worker, before any work.

    Raises:
      ChildProcessError: if a worker dies.
    """
    with concurrent.futures.ProcessPoolExecutor(
        jobs,
        mp_context=_context(),
        initializer=_begin,
        initargs=(jobs, begin),
    ) as pool:
        rows = [pool.submit(_task, work, x) for x in tenants]
        try:
            for done in concurrent.futures.as_completed(rows):
                row, notes = done.result()
                for note in notes:
                    warnings.warn(note, stacklevel=2)
                yield row
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"One of {jobs} worker processes died, as when memory is short. Repeat "
                "the command: it goes on, and with a lower --jobs takes less memory."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """Return the fastest safe way to start a process: JAX has threads, so no fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    result = multiprocessing.get_context("forkserver")
    # Imported once, and by all workers inherited.
    result.set_forkserver_preload([__name__])
    return result


def _begin(jobs: int, begin: Callable[[], None]) -> None:
    # The first process gets the same signal, and tells when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Workers would share the memory of one accelerator.
    jax.config.update("jax_platforms", "cpu")
    threads.share(jobs)
    begin()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _task(work: Work, tenant: Tenant) -> tuple[Row, list[Warning]]:
    """Compress one tenant; return its row, and the warnings of it."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # Of others' code.
        row = tend(work, tenant)
    return row, [x.message for x in found if isinstance(x.message, Warning)]
