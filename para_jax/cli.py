"""The command line, `para`: files in, tables out; the work is the library's."""

import argparse
import contextlib
import json
import logging
import os
import pathlib
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import para_jax as para
from para_jax import arguments, names, tables
from para_jax.compress import cut, spectra_of
from para_jax.formats import Format, directory, recognise, serving
from para_jax.formats.engines import ENGINES
from para_jax.inspection import inspect
from para_jax.report import human_bytes
from para_jax.select import ranks


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
    debug = False
    try:
        given = arguments.parser(
            compress=_compress, inspect=_inspect, sweep=_sweep, convert=_convert
        ).parse_args(words)
        debug = given.debug
        _cache_programs()
        with contextlib.nullcontext() if debug else _quiet():
            given.run(given)
    except SystemExit as stop:  # After --help, or a word that is not known.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        print(f"para: {_sentence(error)}", file=sys.stderr)
        mistakes = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError)
        return 2 if isinstance(error, mistakes) else 1
    return 0


def _compress(given: argparse.Namespace) -> None:
    (policy,) = arguments.policies(given)
    _check_target(given, given.target)
    _check_file(given.report)
    _check_picture(given.plot)
    parent = _load(given)
    with tables.busy(f"Decomposing {len(parent.adapters)} modules"):
        child = para.compress(parent, policy, method=given.method, dtype=given.dtype)
    _save(given, child, given.target)
    if given.report:
        given.report.write_text(json.dumps(child.report.as_dict(), indent=1) + "\n")
    _plot(given.plot, "rank_map", child.report)
    if given.json:
        print(json.dumps(child.report.as_dict()))
        return
    print(child.report)
    print(f"Written to {given.target}, {_on_disk(given.target)} on disk.")


def _inspect(given: argparse.Namespace) -> None:
    _check_picture(given.plot)
    checkpoint = _load(given)
    with tables.busy(f"Decomposing {len(checkpoint.adapters)} modules"):
        found = inspect(checkpoint, method=given.method)
    _plot(given.plot, "spectrum", found.report)
    if given.engines:
        paid = serving.costs(checkpoint)
        if given.json:
            print(json.dumps([x._asdict() for x in paid]))
        else:
            tables.engines(paid)
    elif given.json:
        print(json.dumps(found.as_dict()))
    else:
        tables.inspection(found)


def _sweep(given: argparse.Namespace) -> None:
    policies = arguments.policies(given)
    if twice := sorted(x.name for x, n in Counter(policies).items() if n > 1):
        raise ValueError(f"{twice[0]} is asked for twice.")
    suffix = ".safetensors" if _format(given) == "kohya" else ""
    targets = [given.target / f"{x.name.replace(' ', '-')}{suffix}" for x in policies]
    for target in targets:
        _check_target(given, target)
    parent = _load(given)
    with tables.busy(f"Decomposing {len(parent.adapters)} modules"):
        spectra = spectra_of(parent, method=given.method, dtype=given.dtype)
        for policy in policies:  # All or none: an impossible one stops here.
            if not any(x.any() for x in ranks(spectra, policy).values()):
                raise ValueError(f"{policy.name} keeps no rank at all.")
    rows = []
    pairs = zip(policies, targets, strict=True)
    for policy, target in tables.progress(pairs, len(targets), "Writing"):
        child = cut(parent, spectra, policy)
        _save(given, child, target)
        rows.append((target, child.report))
    if given.json:
        print(json.dumps({str(path): report.summary() for path, report in rows}))
    else:
        tables.children([(path.name, report, _on_disk(path)) for path, report in rows])
        print(f"Written to {given.target}.")


def _convert(given: argparse.Namespace) -> None:
    _check_target(given, given.target)
    checkpoint = _load(given)
    _save(given, checkpoint, given.target)
    if given.json:
        print(json.dumps({str(given.target): sorted(checkpoint.adapters)}))
    else:
        print(
            f"{len(checkpoint.adapters)} adapters written to {given.target}, "
            f"{_on_disk(given.target)} on disk."
        )


def _cache_programs() -> None:
    """Sets JAX up for a short run: compiled programs are kept between runs."""
    # Before JAX looks for devices: a small job takes no three quarters of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
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
        yield
    for text in dict.fromkeys(str(x.message) for x in found):
        print(f"para: note: {text}", file=sys.stderr)
    # Not after a failure: the threads speak until the process ends.
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    logging.disable(level)


def _load(given: argparse.Namespace) -> para.Checkpoint:
    with tables.busy(f"Reading {given.source}"):
        found = para.load(
            given.source,
            layout=given.layout,
            alpha=given.alpha,
            scale=given.scale,
            stack_axis=given.stack_axis,
            adapters_only=given.adapters_only,
        )
    return _named(given, found) if getattr(given, "model", None) else found


def _named(given: argparse.Namespace, found: para.Checkpoint) -> para.Checkpoint:
    """Returns the adapters under the names that DST has.

    Before compressing: some kernels change with their names, and so do their singular
    values.
    """
    table = names.read(given.model) if given.model.endswith(".toml") else given.model
    rename = names.from_hf if _format(given) == "orbax" else names.to_hf
    return rename(
        found,
        table,
        ecosystem=given.ecosystem,
        head_dim=given.head_dim,
        layers=given.layers,
    )


def _format(given: argparse.Namespace) -> Format:
    """Returns the format of DST."""
    if given.engine:
        return ENGINES[given.engine].form
    return given.format or recognise(given.source)


def _save(
    given: argparse.Namespace, checkpoint: para.Checkpoint, target: pathlib.Path
) -> None:
    with tables.busy(f"Writing {target}"):
        para.save(
            checkpoint,
            target,
            format="peft" if given.engine else _format(given),
            profile=given.profile,
            engine=given.engine,
            overwrite=given.overwrite,
        )


def _check_target(given: argparse.Namespace, target: pathlib.Path) -> None:
    """Raises an error before any work if DST could not be written after it."""
    one_file = _format(given) == "kohya"
    check = directory.check_file if one_file else directory.check_target
    check(target, overwrite=given.overwrite)


def _check_file(path: pathlib.Path | None) -> None:
    """Raises an error before any work if a file could not be written after it."""
    if path is not None and not path.parent.is_dir():
        raise NotADirectoryError(
            f"'{path}': the folder '{path.parent}' does not exist."
        )
    if path is not None and path.is_dir():
        raise FileExistsError(f"'{path}' is a folder, expected a file.")


def _check_picture(path: pathlib.Path | None) -> None:
    _check_file(path)
    if path is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        kinds = FigureCanvasBase.get_supported_filetypes()
        if path.suffix.removeprefix(".") not in kinds:
            raise ValueError(f"'{path}' is no picture: use .png, .pdf or .svg.")


def _plot(path: pathlib.Path | None, picture: str, report: para.Report) -> None:
    if path is None:
        return
    from para_jax import plot

    getattr(plot, picture)(report).savefig(path, dpi=150)


def _on_disk(folder: pathlib.Path) -> str:
    if folder.is_file():
        return human_bytes(folder.stat().st_size)
    files = (x for x in folder.rglob("*") if x.is_file())
    return human_bytes(sum(x.stat().st_size for x in files))


def _sentence(error: Exception) -> str:
    """Returns one line that says what went wrong, in the words of the command line."""
    if isinstance(error, ModuleNotFoundError):
        return f"this needs {error.name}: pip install 'para-jax[cli,plot]'."
    if isinstance(error, OSError) and error.strerror:
        return f"'{error.filename}': {error.strerror}."
    text = " ".join(str(error).split()) or type(error).__name__
    for name in ("scale", "alpha", "layout", "stack_axis"):
        text = text.replace(f"{name}=:", f"--{name.replace('_', '-')}:")
    text = text.replace("overwrite it", "use --overwrite")
    text = text.replace("adapters_only=True", "--adapters-only")
    if isinstance(error, (ValueError, OSError)):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
