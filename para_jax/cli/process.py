"""The process of one command: JAX for a short run, and warnings as sentences."""

import contextlib
import gc
import logging
import os
import pathlib
import sys
import threading
import warnings
from collections.abc import Iterator

from para_jax.cli import errors


def cache_programs() -> None:
    """Set JAX up for a short run, and keep compiled programs between runs."""
    # Read when JAX looks for devices. By default it takes three quarters of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Read when SciPy loads OpenBLAS. Its threads would compete over small matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(home, "para_jax")
        with contextlib.suppress(OSError):  # Without a cache it is a little slower.
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default JAX keeps only programs that took a second to compile; ours take less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Turn Python's cycle collector off while the body imports JAX.

    Modules are not garbage, but it looks for some in all of them over and over, for a
    third of the time of `import jax`. They are frozen, so that it also leaves them out
    later, and at the end of the process.
    """
    if "jax" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Print warnings as sentences, and no tracebacks of Orbax's threads.

    Orbax raises the same failure again, as the error of the call.
    """
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    level = logging.root.manager.disable
    sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *_: None
    logging.disable(logging.CRITICAL)
    # Recorded, not shown: a spinner on the error stream would overwrite the line.
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)  # Of others' code.
        yield
    for text in dict.fromkeys(errors.spoken(x.message) for x in found):
        print(f"para: note: {text}", file=sys.stderr)
    # Not after a failure: Orbax's threads print until the process ends.
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    logging.disable(level)


def begin_worker(*, debug: bool) -> None:
    """Set up a worker process of a command as the command's own."""
    cache_programs()
    if not debug:  # Never undone: the worker does nothing else.
        sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *_: None
        logging.disable(logging.CRITICAL)
