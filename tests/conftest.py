"""Apply to every test: shapes are checked, and JAX runs in its strictest mode.

Neither this file nor a conftest below it imports our packages at module level: the
import hook checks only modules imported after it.
"""

import ast
import importlib.util
import os
import pathlib
from collections.abc import Iterator

# The environment, because subprocesses have to inherit it; before JAX is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A test neither reads nor fills the user's cache of compiled programs.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# SciPy's threads would compete with XLA's over one small matrix at a time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"
# Keras asks once, on import.
os.environ["KERAS_BACKEND"] = "jax"

import beartype
import hypothesis
import jax
import jaxtyping
import pytest

# Not in the environment: programs started as a user's must keep JAX's own defaults.
jax.config.update("jax_numpy_rank_promotion", "raise")

# An `int` is a good `float`, at run time as for the static checker. The hook wants the
# checker's name.
typecheck = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
jaxtyping.install_import_hook(["para_jax", "train"], f"{__name__}.typecheck")

# The first example of a test may compile. All else is as hypothesis has it.
hypothesis.settings.register_profile(
    "compiling", parent=hypothesis.settings(), deadline=None
)
hypothesis.settings.load_profile("compiling")

_INTEROP = pathlib.Path(__file__).parent / "interop"
# Packages of tests/interop besides our own requirements. PyTorch is not in every
# environment: for some Pythons there is no build for the CPU.
_LIBRARIES = (
    *("chex", "einops", "gemma", "keras", "keras_hub", "peft", "qwix", "ray", "torch"),
    "transformers",
)
_MISSING = {name for name in _LIBRARIES if importlib.util.find_spec(name) is None}


def pytest_report_header() -> list[str]:
    header = [f"jax {jax.__version__} on {os.environ['JAX_PLATFORMS']}"]
    if _MISSING:
        header.append(
            "tests/interop is left out where it needs what is not installed: "
            + ", ".join(sorted(_MISSING))
        )
    return header


class _Absent(pytest.File):
    """Stand for a test file with missing dependencies."""

    reason = ""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(self.reason, allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: pathlib.Path, parent: pytest.Collector
) -> pytest.Collector | None:
    """Skip a file of tests/interop if one of its imports is not installed."""
    if _INTEROP not in module_path.parents:
        return None
    missing = _MISSING & _imported(module_path)
    if not missing:
        return None
    absent = _Absent.from_parent(parent, path=module_path)
    absent.reason = f"not installed: {', '.join(sorted(missing))}"
    return absent


def _imported(path: pathlib.Path) -> set[str]:
    """Return the packages imported anywhere in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _INTEROP in item.path.parents:
            item.add_marker(pytest.mark.interop)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def no_trace_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Undo what a command sets for its whole process, and isolate the user's settings.

    A file with tests of commands that run in this process uses it for all of them.
    """
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.getbasetemp()))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.delenv("COLUMNS", raising=False)
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Drop the compiled programs of a file: together they took 6 GB a process."""
    yield
    jax.clear_caches()
