"""A fleet on a Ray cluster: each tenant is a task of Ray Data.

Parents and children must be visible to every machine under the same path. Only the
process that started the run writes the manifest. If a worker dies, its current tenant
is compressed again elsewhere, and nothing else is lost. Runs on the host.
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
    """Compress the tenants on the CPUs of a cluster; yield each row as it ends.

    Args:
      work: The unit of work; it is sent to other processes.
      tenants: The tenants to compress.
      jobs: The number of tasks at once, by default one for each CPU.
      address: The cluster's address, as for `ray.init`. By default RAY_ADDRESS, a
        cluster that runs on this machine, or one started for this call.

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
    """Map a task over the items, with one block for each."""
    # A block is Ray's unit of retrying: one item each loses the least by a death.
    with warnings.catch_warnings():  # Ray warns of settings that it makes itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        result = ray.data.from_items(items, override_num_blocks=len(items)).map(
            task,
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=jobs),
            # Ray's default is no limit: an adapter too large for a worker never ends.
            ray_remote_args_fn=lambda: {"max_retries": _RETRIES},
        )
    result.context.enable_progress_bars = False
    result.context.max_errored_blocks = -1  # One tenant's failure must not end the run.
    return result


def _task(work: Work, item: dict[str, str]) -> dict[str, bytes]:
    """Compress one tenant and return its row as bytes."""
    source, target = pathlib.Path(item["source"]), pathlib.Path(item["target"])
    # As bytes, all blocks have the same columns, whatever is in a row.
    row = tend(work, Tenant(item["name"], source, target))
    return {"row": pickle.dumps(row)}


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster and disconnect; keep an existing connection."""
    if ray.is_initialized():
        yield
        return
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
