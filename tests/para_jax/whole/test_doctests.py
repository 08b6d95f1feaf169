"""Test that every documented example runs and gives the documented result.

An example starts from the names defined by the one in `para_jax/__init__.py`, in an
empty folder, with JAX's own defaults.
"""

import ast
import doctest
import importlib
import pathlib
import re

import pytest

# `up` is short for a name in a model.
pytestmark = pytest.mark.filterwarnings("ignore:.* are not names of layers")
PACKAGE = pathlib.Path(__file__).parents[3] / "para_jax"

# Modules with public functions and classes only, and public names of other modules.
PUBLIC = (
    "para_jax",
    "para_jax.flax.linen",
    "para_jax.flax.nnx",
    "para_jax.layouts",
    "para_jax.linalg",
    "para_jax.names",
    "para_jax.plot",
)
SINGLE = {
    "para_jax.names.diffusion.conversion.convert",
    "para_jax.names.diffusion.schemes.read",
    "para_jax.formats.recognition.recognise",
    "para_jax._engines.renaming.named",
    "para_jax._engines.registry.known",
    "para_jax._engines.profiles.shaped",
    "para_jax._engines.prepare.costs",
    "para_jax._engines.prepare.prepare",
}
# One example shows all policies side by side, and results appear with their makers.
ELSEWHERE = {
    **{
        f"para_jax._pruning.policies.{x}": "para_jax._pruning.abstract_policies.Policy"
        for x in ("Bytes", "Epsilon", "Gamma", "Params", "Rank", "Threshold")
    },
    "para_jax._adapters.checkpoint.Child": "para_jax._pruning.pipeline.compress",
    "para_jax._pruning.extract.Extraction": "para_jax._pruning.extract.extract",
    "para_jax._pruning.inspect.Inspection": "para_jax._pruning.inspect.inspect",
    "para_jax._pruning.search.Search": "para_jax._pruning.search.search",
}


def examples():
    """Yield every docstring with an example, read from the source: decorators hide."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            name = module if node is tree else f"{module}.{node.name}"
            text = ast.get_docstring(node) or ""
            found = doctest.DocTestParser().get_doctest(text, {}, name, str(file), 0)
            if found.examples:
                yield found


EXAMPLES = {found.name: found for found in examples()}


def run(name, names):
    """Run an example with the given names.

    Return its unexpected output, and the names afterwards.
    """
    test, said = EXAMPLES[name], []
    for module in re.findall(r"^\s*>>> import (\w+)$", test.docstring, re.MULTILINE):
        pytest.importorskip(module)
    test.globs = dict(names)
    doctest.DocTestRunner().run(test, out=said.append, clear_globs=False)
    return "".join(said), test.globs


def public():
    """Return the modules of the public functions and classes."""
    found = {}
    for name in PUBLIC:
        for key, value in vars(importlib.import_module(name)).items():
            origin = getattr(value, "__module__", None) or ""
            ours = (origin + ".").startswith(f"{name.removesuffix('.linen')}.")
            if callable(value) and ours and not key.startswith("_"):
                found[f"{origin}.{key}"] = value
    return found


@pytest.fixture(scope="module")
def names():
    said, found = run("para_jax", {})
    assert not said
    return found


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.user_defaults
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name, names):
    said, _ = run(name, names)

    assert not said, said


def test_every_public_name_has_an_example():
    assert sorted((public().keys() | SINGLE) - EXAMPLES.keys() - ELSEWHERE.keys()) == []


@pytest.mark.user_defaults
@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_has_no_example_of_its_own_is_seen_in_another(name, names):
    kind = public()[name]

    _, left = run(ELSEWHERE[name], names)

    assert any(x is kind or isinstance(x, kind) for x in left.values())
