"""The command line, `para`: files in, tables out; the work is the library's."""

import argparse
import contextlib
import functools
import json
import logging
import os
import pathlib
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import para_jax as para
from para_jax._engines import prepare
from para_jax._engines import rules as engine_rules
from para_jax._engines.registry import ENGINES
from para_jax._fleet import manifest
from para_jax._fleet import tenants as fleet
from para_jax._pruning.inspect import inspect
from para_jax._pruning.pipeline import cuts, spectra_of
from para_jax._pruning.select import ranks
from para_jax.cli import endpoints, errors, parser, show

_MISTAKES = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 2 for a user's mistake, 1 for a failure."""
    try:
        status = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # As when the output goes to `head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _run(words: Sequence[str] | None) -> int:
    debug, status = False, None
    try:
        given = parser.parser(
            compress=_compress,
            inspect=_inspect,
            sweep=_sweep,
            fleet=_fleet,
            convert=_convert,
        ).parse_args(words)
        debug = given.debug
        parser.check(given)
        _cache_programs()
        with contextlib.nullcontext() if debug else _quiet():
            status = given.run(given)
    except SystemExit as stop:  # After --help, or a word that is not known.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        print(f"para: {errors.sentence(error)}", file=sys.stderr)
        return 2 if isinstance(error, _MISTAKES) else 1
    return status or 0


def _compress(given: argparse.Namespace) -> None:
    (policy,) = parser.policies(given)
    endpoints.check_target(given, given.target)
    endpoints.check_file(given.report)
    endpoints.check_picture(given.plot)
    child = _child(given, policy)
    with show.busy(f"Writing {given.target}"):
        endpoints.save(given, child, given.target)
    if given.report:
        given.report.write_text(json.dumps(child.report.as_dict(), indent=1) + "\n")
    _plot(given.plot, "rank_map", child.report)
    if given.json:
        print(json.dumps(child.report.as_dict()))
        return
    print(show.wrapped(str(child.report), indent=14))
    print(f"Written to {given.target}, {endpoints.on_disk(given.target)} on disk.")
    _note(given)


def _child(given: argparse.Namespace, policy: para.Policy) -> para.Child:
    """Returns the child of SRC, which takes no memory any more."""
    parent = endpoints.load(given)
    endpoints.check_engine(given, parent)
    with show.progress(f"Compressing {len(parent.adapters)} modules") as progress:
        return para.compress(
            parent, policy, method=given.method, dtype=given.dtype, progress=progress
        )


def _inspect(given: argparse.Namespace) -> None:
    _check_tables(given)
    endpoints.check_picture(given.plot)
    checkpoint = endpoints.load(given)
    if given.engines:
        _engines(given, checkpoint)
        return
    with show.progress(f"Decomposing {len(checkpoint.adapters)} modules") as progress:
        found = inspect(checkpoint, method=given.method, progress=progress)
    _plot(given.plot, "spectrum", found.report)
    layout = checkpoint.tree and checkpoint.tree.layout
    if given.json:
        print(json.dumps(found.as_dict() | {"layout": layout}))
    else:
        show.inspection(found)
        if layout:
            print(f"A tree of the layout {layout}.")


def _engines(given: argparse.Namespace, checkpoint: para.Checkpoint) -> None:
    paid = [
        x._replace(refused=errors.spoken(x.refused)) for x in prepare.costs(checkpoint)
    ]
    if given.json:
        print(json.dumps([x._asdict() for x in paid]))
    else:
        show.engines(paid)


def _sweep(given: argparse.Namespace) -> None:
    _check_tables(given)
    policies = parser.policies(given)
    if twice := sorted(x.name for x, n in Counter(policies).items() if n > 1):
        raise ValueError(f"{twice[0]} is asked for twice.")
    suffix = ".safetensors" if endpoints.form(given) == "kohya" else ""
    targets = [given.target / f"{x.name.replace(' ', '-')}{suffix}" for x in policies]
    for target in targets:
        endpoints.check_target(given, target)
    parent = endpoints.load(given)
    endpoints.check_engine(given, parent)
    with show.progress(f"Decomposing {len(parent.adapters)} modules") as progress:
        spectra = spectra_of(
            parent, method=given.method, dtype=given.dtype, progress=progress
        )
    for policy in policies:  # All or none: an impossible one stops here.
        if not any(x.any() for x in ranks(spectra, policy).values()):
            raise ValueError(f"{policy.name} keeps no rank at all.")
    rows = []
    with show.progress(f"Writing {len(targets)} children") as progress:
        children = cuts(parent, spectra, policies, form="ragged")
        for target, child in zip(progress(targets), children, strict=True):
            endpoints.save(given, child, target)
            rows.append((target, child.report))
    if given.json:
        print(json.dumps({str(path): report.summary() for path, report in rows}))
        return
    sizes = [endpoints.on_disk(path) for path, _ in rows]
    show.children([(x.name, y, z) for (x, y), z in zip(rows, sizes, strict=True)])
    print(f"Written to {given.target}.")
    _note(given)


def _fleet(given: argparse.Namespace) -> int:
    """Returns 1 if a tenant has no child."""
    parser.policies(given)
    form = ENGINES[given.engine].form if given.engine else given.format
    found = fleet.find(given.source, given.target, form)
    for one in {x.target.suffix: x for x in found.tenants}.values():
        endpoints.check_words(given, one.source, one.target)
    start = time.perf_counter()
    with manifest.opened(
        given.target, parser.recipe(given), overwrite=given.overwrite
    ) as kept:
        rows = _tended(given, fleet.pending(found.tenants, kept), kept)
    children = [kept.rows[x.name] for x in found.tenants]
    failed = {x.name: errors.spoken(x.failure) for x in rows if x.failure}
    summary = {
        "tenants": len(children),
        "written": len(rows) - len(failed),
        "there": len(children) - len(rows),
        "failed": failed,
        "passed_over": [str(x) for x in found.others],
        "seconds": time.perf_counter() - start,
        "manifest": str(given.target / manifest.NAME),
    }
    if given.json:
        print(json.dumps(summary))
    else:
        show.fleet([x for x in children if not x.failure], summary)
        _note(given)
    return int(bool(failed))


def _tended(
    given: argparse.Namespace, todo: Sequence[fleet.Tenant], kept: manifest.Manifest
) -> list[manifest.Row]:
    """Returns the new rows of the manifest."""
    words = {name: value for name, value in vars(given).items() if name != "run"}
    work = functools.partial(endpoints.compressed, argparse.Namespace(**words))
    rows = []
    try:
        with show.tenants(len(todo)) as progress:
            for row in progress(_engine(given, work, todo)):
                kept.append(row)
                rows.append(row)
    except KeyboardInterrupt:
        done = f"{len(rows)} of {len(todo)} tenants are done"
        print(f"para: {done}; the same command goes on.", file=sys.stderr)
        raise
    return rows


def _engine(
    given: argparse.Namespace, work: fleet.Work, todo: Sequence[fleet.Tenant]
) -> Iterator[manifest.Row]:
    if given.ray is None:
        return fleet.threads(work, todo, jobs=given.jobs or fleet.JOBS)
    from para_jax._fleet import ray

    return ray.tasks(work, todo, jobs=given.jobs, address=given.ray or None)


def _convert(given: argparse.Namespace) -> None:
    endpoints.check_target(given, given.target)
    checkpoint = endpoints.load(given)
    with show.busy(f"Writing {given.target}"):
        endpoints.save(given, checkpoint, given.target)
    if given.json:
        print(json.dumps({str(given.target): sorted(checkpoint.adapters)}))
        return
    print(
        f"{len(checkpoint.adapters)} adapters written to {given.target}, "
        f"{endpoints.on_disk(given.target)} on disk."
    )
    _note(given)


def _check_tables(given: argparse.Namespace) -> None:
    if not given.json:
        show.check()


def _note(given: argparse.Namespace) -> None:
    """Prints what to know about the engine that is to serve DST."""
    if given.engine:
        note = engine_rules.note(ENGINES[given.engine], endpoints.form(given))
        print(show.wrapped(f"{given.engine}: {note}"))


def _cache_programs() -> None:
    """Sets JAX up for a short run: compiled programs are kept between runs."""
    # Before JAX looks for devices: a small job takes no three quarters of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Before SciPy loads it: one small matrix at a time, its threads would only compete.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(home, "para_jax")
        with contextlib.suppress(OSError):  # It goes without, a little slower.
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Prints warnings as sentences, and no tracebacks of Orbax's threads.

    What they say comes once more, as the error that Orbax then raises.
    """
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    level = logging.root.manager.disable
    sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *_: None
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)  # Of others' code.
        yield
    for text in dict.fromkeys(errors.spoken(x.message) for x in found):
        print(f"para: note: {text}", file=sys.stderr)
    # Not after a failure: the threads speak until the process ends.
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    logging.disable(level)


def _plot(path: pathlib.Path | None, picture: str, report: para.Report) -> None:
    if path is None:
        return
    from para_jax import plot

    getattr(plot, picture)(report).savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
