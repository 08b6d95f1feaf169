"""Test that the package has its public names, though it imports them when used."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "para_jax"
# Those that the public names have always brought along.
SUBPACKAGES = {"formats", "layouts", "linalg", "names"}


def imported():
    """Return the names that the package's static imports bind."""
    tree = ast.parse((PACKAGE / "_api.py").read_text())
    froms = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return {alias.asname for node in froms for alias in node.names}


def said(program):
    """Run a program in a new process, and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{program}"],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(done.stdout)


def test_the_package_itself_imports_neither_jax_nor_numpy():
    program = "import para_jax; print(json.dumps(list(sys.modules)))"

    assert not {"jax", "numpy", "para_jax._api"} & set(said(program))


def test_the_names_are_listed_before_the_first_use():
    program = "import para_jax; print(json.dumps(dir(para_jax)))"

    shown = {x for x in said(program) if not x.startswith("_")}

    assert shown == imported() | SUBPACKAGES
    assert len(shown) > 50


@pytest.mark.parametrize(
    "program",
    [
        "import para_jax; x = para_jax.compress",
        "from para_jax import compress; x = compress",
        "from para_jax import *; x = compress",
        "import para_jax as para; import jax; x = para.compress",
        "from para_jax import formats, plot; from para_jax import compress as x",
        "import para_jax.formats; x = para_jax.compress",
    ],
)
def test_a_name_may_be_imported_in_any_way(program):
    shown = said(f"{program}\nprint(json.dumps([x.__module__, x.__name__]))")

    assert shown == ["para_jax._pruning.pipeline", "compress"]


def test_every_name_is_there_at_its_first_use():
    program = """
import para_jax
found = {name: getattr(para_jax, name) is not None for name in NAMES}
print(json.dumps(found))
"""
    names = imported() | SUBPACKAGES | {"__version__"}

    assert said(f"NAMES = {sorted(names)}\n{program}") == dict.fromkeys(names, True)


def test_a_misspelt_name_is_an_attribute_error():
    import para_jax

    with pytest.raises(AttributeError, match=r"'para_jax' has no attribute 'Gama'"):
        _ = para_jax.Gama
    with pytest.raises(ImportError, match="'Gama'"):
        from para_jax import Gama  # noqa: F401
