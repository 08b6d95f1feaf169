"""Test that the API reference has every public name."""

import importlib
import pathlib
import re
import types

import pytest

PAGES = sorted((pathlib.Path(__file__).parents[1] / "docs/api").glob("*.md"))
MODULES = (
    "para_jax",
    "para_jax.flax.linen",
    "para_jax.flax.nnx",
    "para_jax.formats",
    "para_jax.layouts",
    "para_jax.linalg",
    "para_jax.names",
    "para_jax.plot",
)
# The package imports its names from there, at the first use of one.
HOLDERS = {"para_jax": importlib.import_module("para_jax._api")}
# Documented at the top of the package; `check_same` is for our own use.
AGAIN = {
    "para_jax.formats": {"load", "save", "check_same"},
    "para_jax.layouts": {"from_tree", "to_tree"},
}


def documented():
    """Yield every name documented on a page, with the module before it."""
    for page in PAGES:
        for block in page.read_text().split("currentmodule:: ")[1:]:
            module = block.split()[0]
            for name in re.findall(r"^\.\. (?:auto|py:)\w+:: (\w+)$", block, re.M):
                yield f"{module}.{name}"


def public(module):
    """Yield the names re-exported as themselves, or defined in the module."""
    source = pathlib.Path(HOLDERS.get(module.__name__, module).__file__).read_text()
    yield from re.findall(r"\b(\w+) as \1\b", source)
    yield from re.findall(r"^(?:def|class) ([a-zA-Z]\w*)", source, re.M)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_on_one_page(name):
    module = importlib.import_module(name)
    pages = list(documented())

    names = set(public(module)) - AGAIN.get(name, set())
    names -= {x for x in names if isinstance(getattr(module, x), types.ModuleType)}

    assert len(names) > 1
    assert {x: pages.count(f"{name}.{x}") for x in names} == dict.fromkeys(names, 1)


def test_every_name_on_a_page_is_there():
    for name in documented():
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name


def test_links_to_the_repository_lead_where_the_notebooks_are_cloned_from():
    root = PAGES[0].parents[2]
    notebook = (root / "colabs/01_compress_an_adapter.ipynb").read_text()

    url = re.search(
        r'^repository_url = "(.+)"$', (root / "docs/conf.py").read_text(), re.M
    )

    assert f'REPOSITORY = \\"{url[1]}\\"' in notebook
