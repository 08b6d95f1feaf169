"""Replace packages that an engine imports without calling anything in them here."""

import importlib.abc
import importlib.machinery
import pathlib
import sys
import types


class _Every(type):
    """Return the same placeholder class for every attribute of a class."""

    def __getattr__(cls, name):
        return _anything(name)


class _Nothing(metaclass=_Every):
    def __init__(self, *words, **options):
        pass


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find missing packages as empty ones in which every name is a class."""

    def __init__(self, names: set[str]):
        self.names = names

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__getattr__ = _anything


def _anything(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Nothing


def install(*names: str) -> None:
    """Allow importing packages that are not installed.

    Import transformers and diffusers first: they check which packages exist.
    """
    sys.meta_path.append(Finder(set(names)))


def replace(name: str) -> None:
    """Replace an existing module with an empty one."""
    sys.modules[name] = module = types.ModuleType(name)
    module.__getattr__ = _anything


def without_init(name: str, folder: pathlib.Path) -> None:
    """Allow importing a package's modules without its `__init__`."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
