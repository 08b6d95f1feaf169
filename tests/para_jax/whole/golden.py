"""Record and compare the golden run: the command and the Python API, call by call.

    python -m tests.para_jax.whole.golden --exact        # bit for bit as recorded?
    python -m tests.para_jax.whole.golden --write        # record it anew
    python -m tests.para_jax.whole.golden --full FILE    # nothing abridged, for a diff

`golden.json` is the record. It guards refactorings: it documents past behaviour, not
correct behaviour.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import pathlib
import re
import shlex
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import Any

# Before NumPy and JAX are imported; tests/conftest.py says the same.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import jax

import para_jax as para
from para_jax import cli
from tests.para_jax.whole import api, calls, describe, inputs

_LINES = re.compile(r"\n *")
RECORD = pathlib.Path(__file__).with_name("golden.json")
CALLS = {**calls.COMMANDS, **api.FUNCTIONS}
assert len(CALLS) == len(calls.COMMANDS) + len(api.FUNCTIONS)

# Packages that determine the bits of a result.
_PACKAGES = "jax jaxlib numpy scipy ml-dtypes orbax-checkpoint safetensors matplotlib"
# Settings a command changes for its own process.
_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
# Variables that would change the look of a table.
_LOOKS = "COLUMNS LINES FORCE_COLOR NO_COLOR TTY_COMPATIBLE TTY_INTERACTIVE"


def machine() -> dict[str, str]:
    """Return the environment that must match for identical bits."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    # The flags too: a name is shared by processors of other instructions.
    cpu = [x for x in lines if x.startswith(("model name", "flags", "Features"))]
    return {
        "processor": describe.sha("\n".join(sorted(set(cpu)))),
        "cores": str(os.cpu_count()),
        "python": ".".join(map(str, sys.version_info[:2])),
        **{x: metadata.version(x) for x in _PACKAGES.split()},
    }


def make(folder: pathlib.Path) -> pathlib.Path:
    """Write all inputs; return their places."""
    (folder / "in").mkdir(parents=True)
    inputs.make(folder / "in")
    return folder


def record(name: str, root: pathlib.Path, *, full: bool = False) -> dict[str, Any]:
    """Record one call, run in a folder below `root`."""
    here = root / "runs" / name.replace(" ", "-")
    here.mkdir(parents=True)
    (here / "in").symlink_to(root / "in")
    places = {
        str(here.resolve()): "<here>",
        str(here): "<here>",
        str(root.resolve()): "<root>",
        str(root): "<root>",
        str(inputs.REPO): "<repo>",
    }
    how = describe.How(places, full=full)
    out, err = io.StringIO(), io.StringIO()
    found: dict[str, Any] = {}
    with (
        _undone(root),
        contextlib.chdir(here),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        call = CALLS[name]
        if callable(call):
            found |= _returned(call, here / "in", how)
        else:
            commands = (call,) if isinstance(call, str) else call
            found["codes"] = [cli.main(shlex.split(x)) for x in commands]
    (here / "in").unlink()
    files = describe.files(here, how)
    for stream, words in (("out", out.getvalue()), ("err", err.getvalue())):
        if name == "version":
            words = words.replace(para.__version__, "<version>")
        if "checkpoint" in str(files):  # Its size differs from run to run.
            words = re.sub(r"[\d.]+ k?B on disk", "# on disk", words)
        if words:
            found[stream] = describe.text(words, how)
    if files:
        found["files"] = files
    return found


def _returned(call: Any, folder: pathlib.Path, how: describe.How) -> dict:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            value = call(folder)
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            return {"raised": describe.text(words, how)}
    found = {"value": describe.value(value, how)}
    if notes := [describe.text(str(x.message), how) for x in said]:
        found["warned"] = notes
    return found


@contextlib.contextmanager
def _undone(root: pathlib.Path) -> Iterator[None]:
    """Undo a command's process-wide settings, and isolate the user's."""
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    level = logging.root.manager.disable
    settings = {x: getattr(jax.config, x) for x in _SETTINGS}
    environment = dict(os.environ)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    for name in _LOOKS.split():
        os.environ.pop(name, None)
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
        logging.disable(level)
        for name, value in settings.items():
            jax.config.update(name, value)
        os.environ.clear()
        os.environ.update(environment)


def run(*, full: bool = False) -> dict[str, Any]:
    """Record all calls."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        root = make(pathlib.Path(folder) / "golden")
        for name in CALLS:
            start = time.perf_counter()
            found[name] = record(name, root, full=full)
            print(f"{time.perf_counter() - start:6.2f} s  {name}", file=sys.stderr)
    return found


def _written(found: Any) -> str:
    """Return JSON with each text and array on one line."""
    words = json.dumps(found, indent=1, ensure_ascii=False)
    inner = re.compile(r'([{[])\n *("(?:dtype|sha256)"|-?\d)([^{}]*?)\n *([]}])')
    return inner.sub(lambda x: x[1] + _LINES.sub(" ", x[2] + x[3]) + x[4], words) + "\n"


def read() -> dict[str, Any]:
    return json.loads(RECORD.read_text())


def main() -> int:
    """Record or compare. Return 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="record all calls anew")
    what.add_argument("--exact", action="store_true", help="compare, bit for bit")
    words = "compare what holds on every machine"
    what.add_argument("--portable", action="store_true", help=words)
    what.add_argument("--full", type=pathlib.Path, help="write all there is to a file")
    given = parser.parse_args()
    found = {"machine": machine(), "calls": run(full=given.full is not None)}
    if given.write or given.full:
        target = (given.full or RECORD).absolute()
        target.write_text(_written(found))
        return 0
    old = read() if given.exact else read() | {"machine": found["machine"]}
    lines = describe.differences(old, json.loads(json.dumps(found)), exact=given.exact)
    print("\n".join(lines) or f"All {len(CALLS)} calls are as recorded.")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
