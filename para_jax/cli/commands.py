"""The five commands: each checks its request, reads SRC, writes DST, and prints.

Whatever can be refused is refused before any work.
"""

import dataclasses
import json
import time

import para_jax as para
from para_jax._engines import prepare
from para_jax._engines.registry import ENGINES
from para_jax._fleet import manifest, tenants as fleet_tenants
from para_jax._pruning.inspect import inspect as inspection_of
from para_jax._pruning.pipeline import cuts, spectra_of
from para_jax._pruning.select import ranks
from para_jax.cli import budgets, errors, fleet_run, reports, show, source, target
from para_jax.cli.request import Compress, Convert, Fleet, Inspect, Request, Sweep
from para_jax.names.former import former


def run(request: Request) -> int | None:
    """Run the command of a request and return its status, None for success."""
    match request:
        case Compress():
            return compress(request)
        case Inspect():
            return inspect(request)
        case Sweep():
            return sweep(request)
        case Fleet():
            return fleet(request)
        case Convert():
            return convert(request)


def compress(request: Compress) -> None:
    """Write one smaller adapter."""
    (policy,) = budgets.policies(request.cut, request.output.engine)
    target.check(request)
    reports.check_file(request.report)
    reports.check_picture(request.plot)
    child = _child(request, policy)
    with show.busy(f"Writing {request.target}"):
        target.save(request, child)
    reports.write(request.report, child.report)
    reports.draw(request.plot, "rank_map", child.report)
    if request.json:
        print(json.dumps(child.report.as_dict()))
        return
    print(show.wrapped(str(child.report), indent=14))
    size = target.on_disk(request.target)
    print(f"Written to {request.target}, {size} on disk.")
    _note(request)


def _child(request: Compress, policy: para.Policy) -> para.Child:
    # A function of its own, so that SRC is freed before DST is written.
    parent = source.load(request)
    target.check_engine(request, parent)
    policy = budgets.based(policy, request.cut, parent)
    with show.progress(f"Compressing {len(parent.adapters)} modules") as progress:
        return para.compress(
            parent,
            policy,
            method=request.cut.method,
            dtype=request.cut.dtype,
            progress=progress,
        )


def inspect(request: Inspect) -> None:
    """Print the modules and spectra of an adapter, or its costs by engine."""
    # Decomposing may take minutes: a missing `rich` is told before, not after.
    if not request.json:
        show.check()
    reports.check_picture(request.plot)
    checkpoint = source.inspected(request.source, request.hints)
    if request.engines:
        _engines(request, checkpoint)
        return
    with show.progress(f"Decomposing {len(checkpoint.adapters)} modules") as progress:
        found = inspection_of(checkpoint, method=request.method, progress=progress)
    reports.draw(request.plot, "spectrum", found.report)
    layout = checkpoint.tree and checkpoint.tree.layout
    notes = [errors.spoken(x) for x in former(checkpoint)]
    if request.json:
        print(json.dumps(found.as_dict() | {"layout": layout, "former_names": notes}))
        return
    show.inspection(found)
    for note in notes:
        print(show.wrapped(note))
    if layout:
        print(f"A tree of the layout {layout}.")


def _engines(request: Inspect, checkpoint: para.Checkpoint) -> None:
    # A refusal names arguments of the library: shown and as JSON they are flags.
    costs = [
        x._replace(refused=errors.spoken(x.refused)) for x in prepare.costs(checkpoint)
    ]
    if request.json:
        print(json.dumps([x._asdict() for x in costs]))
    else:
        show.engines(costs)


def sweep(request: Sweep) -> None:
    """Write one adapter a budget, from one decomposition."""
    if not request.json:
        show.check()
    policies = budgets.policies(request.cut, request.output.engine)
    children = _children(request, policies)
    # All before the first: a sweep writes every child or none.
    for child in children:
        target.check(child)
    parent = source.load(request)
    target.check_engine(request, parent)
    policies = [budgets.based(x, request.cut, parent) for x in policies]
    reports_of = _swept(request, parent, policies, children)
    paths = [x.target for x in children]
    if request.json:
        rows = zip(paths, reports_of, strict=True)
        print(json.dumps({str(path): x.summary() for path, x in rows}))
        return
    sizes = map(target.on_disk, paths)
    names = [x.name for x in paths]
    show.children(list(zip(names, reports_of, sizes, strict=True)))
    print(f"Written to {request.target}.")
    _note(request)


def _children(request: Sweep, policies: list[para.Policy]) -> list[Sweep]:
    """Make the request for each child: its DST is named after its policy."""
    ending = target.ending(request)
    names = [f"{x.name.replace(' ', '-')}{ending}" for x in policies]
    return [dataclasses.replace(request, target=request.target / x) for x in names]


def _swept(
    request: Sweep,
    parent: para.Checkpoint,
    policies: list[para.Policy],
    children: list[Sweep],
) -> list[para.Report]:
    cut = request.cut
    with show.progress(f"Decomposing {len(parent.adapters)} modules") as progress:
        spectra = spectra_of(
            parent, method=cut.method, dtype=cut.dtype, progress=progress
        )
    # Ranks cost next to nothing beside spectra, and an empty child cannot be saved.
    for policy in policies:
        if not any(x.any() for x in ranks(spectra, policy).values()):
            raise ValueError(f"{policy.name} keeps no rank at all.")
    result = []
    with show.progress(f"Writing {len(children)} children") as progress:
        # Ragged children are views of the largest one, so all take the memory of one.
        found = cuts(parent, spectra, policies, form="ragged")
        for one, child in zip(progress(children), found, strict=True):
            target.save(one, child)
            result.append(child.report)
    return result


def fleet(request: Fleet) -> int:
    """Compress many adapters alike; return 1 if one of them has no child."""
    engine = request.output.engine
    # Each tenant makes them again: a wrong budget is one error here, not one a tenant.
    budgets.policies(request.cut, engine)
    form = ENGINES[engine].form if engine else request.output.format
    found = fleet_tenants.find(request.patterns, request.target, form)
    fleet_run.check(request, found.tenants)
    start = time.perf_counter()
    recipe, overwrite = request.recipe(), request.output.overwrite
    with manifest.opened(request.target, recipe, overwrite=overwrite) as kept:
        rows = fleet_run.tended(
            request, fleet_tenants.pending(found.tenants, kept), kept
        )
    # A manifest may also hold tenants of earlier patterns: only these are counted.
    children = [kept.rows[x.name] for x in found.tenants]
    failed = {x.name: errors.spoken(x.failure) for x in rows if x.failure}
    summary = {
        "tenants": len(children),
        "written": len(rows) - len(failed),
        "there": len(children) - len(rows),
        "failed": failed,
        "passed_over": [str(x) for x in found.others],
        "seconds": time.perf_counter() - start,
        "manifest": str(request.target / manifest.NAME),
    }
    if request.json:
        print(json.dumps(summary))
    else:
        show.fleet([x for x in children if not x.failure], summary)
        _note(request)
    return int(bool(failed))


def convert(request: Convert) -> None:
    """Write an adapter in another format."""
    target.check(request)
    checkpoint = source.load(request)
    with show.busy(f"Writing {request.target}"):
        target.save(request, checkpoint)
    if request.json:
        print(json.dumps({str(request.target): sorted(checkpoint.adapters)}))
        return
    print(
        f"{len(checkpoint.adapters)} adapters written to {request.target}, "
        f"{target.on_disk(request.target)} on disk."
    )
    _note(request)


def _note(request: Compress | Sweep | Fleet | Convert) -> None:
    if engine := request.output.engine:
        print(show.wrapped(target.note(engine, request.target)))
