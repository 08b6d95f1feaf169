"""Import tunix's models without the rest of tunix.

tunix's `__init__` imports all of its trainers. Its models need none of them, so an
empty package stands in for it.
"""

import contextlib
import importlib
import importlib.util
import pathlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import flax
import pytest


@contextlib.contextmanager
def models() -> Iterator[Callable[[str], Any]]:
    """Yield a function from the name of a module in `tunix.models` to the module."""
    package = types.ModuleType("tunix")
    spec = importlib.util.find_spec("tunix")
    package.__path__ = [str(pathlib.Path(spec.origin).parent)]
    before = flax.config.flax_always_shard_variable  # Its models turn it off.
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        patch.setitem(sys.modules, "tunix", package)
        yield lambda name: importlib.import_module(f"tunix.models.{name}")
    for name in [x for x in sys.modules if x.split(".")[0] == "tunix"]:
        del sys.modules[name]
    flax.config.update("flax_always_shard_variable", before)
