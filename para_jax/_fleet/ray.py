"""A fleet on a cluster of Ray: the unit of work is a task of Ray Data. Host.

Parents and children lie where every machine sees them under the same path. The manifest
is written by the one process that started the run; a worker that dies takes nothing
with it but the tenant that it was at, which is done again elsewhere.
"""

import contextlib
import functools
import logging
import pathlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence

import ray
import ray.data

from para_jax._fleet.manifest import Row
from para_jax._fleet.tenants import Tenant, Work, tend

_RETRIES = 3


def tasks(
    work: Work,
    tenants: Sequence[Tenant],
    *,
    jobs: int | None = None,
    address: str | None = None,
) -> Iterator[Row]:
    """Yields a row a tenant, as they end on the CPUs of a cluster.

    Args:
      work: The unit of work; it is sent to other processes.
      tenants: Whom to serve.
      jobs: How many at once; as many as there are CPUs by default.
      address: The cluster's, as `ray.init` takes it. By default that in RAY_ADDRESS, a
        cluster that runs on this machine, or one that is started for this call.

    Raises:
      ConnectionError: if no cluster answers at the address.
    """
    if not tenants:  # A cluster takes seconds to start.
        return
    places = [(x.name, x.source.absolute(), x.target.absolute()) for x in tenants]
    items = [{"name": x, "source": f"{y}", "target": f"{z}"} for x, y, z in places]
    lost = {x.name: x for x in tenants}
    with _connected(address):
        for item in _blocks(functools.partial(_task, work), items, jobs).iter_rows():
            row = pickle.loads(item["row"])
            del lost[row.name]
            yield row
    for name, source, target in lost.values():
        yield Row(
            name=name,
            source=str(source),
            target=str(target),
            status="failed",
            failure=f"All {1 + _RETRIES} processes that tried it died: see Ray's logs.",
        )


def _blocks(
    task: Callable[[dict[str, str]], dict[str, bytes]],
    items: list[dict[str, str]],
    jobs: int | None,
) -> ray.data.Dataset:
    """Returns what becomes of the items, a block each: so much does a death cost."""
    with warnings.catch_warnings():  # Ray warns of settings that it makes itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        result = ray.data.from_items(items, override_num_blocks=len(items)).map(
            task,
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=jobs),
            # For ever, if nobody says: an adapter too large for a worker has no end.
            ray_remote_args_fn=lambda: {"max_retries": _RETRIES},
        )
    result.context.enable_progress_bars = False
    result.context.max_errored_blocks = -1  # One that kills every worker is no end.
    return result


def _task(work: Work, item: dict[str, str]) -> dict[str, bytes]:
    """Returns a row as bytes: whatever is in it, all blocks have the same columns."""
    source, target = pathlib.Path(item["source"]), pathlib.Path(item["target"])
    row = tend(work, Tenant(item["name"], source, target))
    return {"row": pickle.dumps(row)}


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connects to a cluster, and leaves it; one that is connected to already stays."""
    if ray.is_initialized():
        yield
        return
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
