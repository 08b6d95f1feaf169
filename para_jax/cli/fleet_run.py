"""The tenants of a fleet, compressed in threads, processes or on a cluster of Ray."""

import functools
import pathlib
import sys
from collections.abc import Iterator, Sequence

import para_jax as para
from para_jax._fleet import processes, tenants as fleet
from para_jax._fleet.manifest import Manifest, Row
from para_jax.cli import budgets, process, show, source, target
from para_jax.cli.request import Fleet


def check(request: Fleet, tenants: Sequence[fleet.Tenant]) -> None:
    """Raise ValueError if the request does not fit the children of any format."""
    # One of each ending is checked; others of a mixed fleet fail in their own rows.
    for one in {x.target.suffix: x for x in tenants}.values():
        child = request.tenant(one.source, one.target)
        source.names_table(child)
        target.check_form(child)


def tended(request: Fleet, todo: Sequence[fleet.Tenant], kept: Manifest) -> list[Row]:
    """Compress tenants; return their new rows of the manifest."""
    work = functools.partial(compressed, request)
    rows = []
    try:
        with show.tenants(len(todo)) as progress:
            # Each row is on disk before the next: a killed run repeats no done tenant.
            for row in progress(_rows(request, work, todo)):
                kept.append(row)
                rows.append(row)
    except KeyboardInterrupt:
        # Said here, while the counts are known: `main` exits with 130 and no word.
        done = f"{len(rows)} of {len(todo)} tenants are done"
        print(f"para: {done}; the same command goes on.", file=sys.stderr)
        raise
    return rows


def _rows(
    request: Fleet, work: fleet.Work, todo: Sequence[fleet.Tenant]
) -> Iterator[Row]:
    if request.ray is None:
        jobs = request.jobs or processes.workers(todo)
        if not processes.pay(todo, jobs):
            return fleet.threads(work, todo, jobs=request.jobs or fleet.JOBS)
        begin = functools.partial(process.begin_worker, debug=request.debug)
        return processes.processes(work, todo, jobs=jobs, begin=begin)
    # An extra, and seconds to import: only where it is asked for.
    from para_jax._fleet import ray

    return ray.tasks(work, todo, jobs=request.jobs, address=request.ray or None)


def compressed(
    request: Fleet, source_path: pathlib.Path, target_path: pathlib.Path
) -> para.Report:
    """Write the child of one tenant, and print nothing.

    At the top of a module and with plain values, so that Ray can send it to workers.
    """
    one = request.tenant(source_path, target_path)
    (policy,) = budgets.policies(one.cut, one.output.engine)
    parent = source.renamed(one)
    target.check_engine(one, parent)
    policy = budgets.based(policy, one.cut, parent)
    child = para.compress(parent, policy, method=one.cut.method, dtype=one.cut.dtype)
    target.save(one, child)
    return child.report
