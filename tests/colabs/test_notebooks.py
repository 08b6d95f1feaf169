"""Check that the notebooks are clean in git and that their claims hold when run.

A notebook asserts its own claims. The assertions here use other oracles: PyTorch's
accuracy, the demo's table, and files read by safetensors and Orbax alone.
"""

import ast
import copy
import importlib
import json
import re
import subprocess
import sys
import types

import nbformat
import numpy as np
import pytest
import safetensors.numpy

from tests.colabs import execute

COLAB = "https://colab.research.google.com/github/"
BEFORE = """
import json
import matplotlib.figure

_seen, _draw = {}, matplotlib.figure.Figure.draw


def _watched(figure, renderer):
    for number, axes in enumerate(figure.axes):
        texts = axes.get_title(), axes.get_xlabel(), axes.get_ylabel()
        if not hasattr(axes, "_colorbar"):
            _seen[figure, number] = texts
    return _draw(figure, renderer)


matplotlib.figure.Figure.draw = _watched
"""
AFTER = "print(json.dumps({'pictures': list(_seen.values()), 'asked': [%s]}))"

each = pytest.mark.parametrize("path", execute.NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def sources(path):
    return [cell.source for cell in execute.read(path).cells]


def test_there_are_four():
    assert [path.stem[:3] for path in execute.NOTEBOOKS] == ["01_", "02_", "03_", "04_"]


@each
def test_git_holds_a_valid_notebook_without_outputs_in_canonical_form(path):
    notebook = execute.read(path)

    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert all(x.outputs == [] and x.execution_count is None for x in code(notebook))
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert path.read_text() == nbformat.writes(notebook, indent=1) + "\n"


@each
def test_cells_have_names_and_not_random_ids(path):
    names = [cell["id"] for cell in execute.read(path).cells]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in names)


@each
def test_a_title_links_to_colab_and_the_install_cell_is_the_same_in_all(path):
    title, install = execute.read(path).cells[:2]
    first = execute.read(execute.NOTEBOOKS[0]).cells[1]

    assert title.source.startswith("# ")
    repository = re.search(r'REPOSITORY = "https://github\.com/(\S+)"', install.source)
    link = f"{COLAB}{repository[1]}/blob/main/colabs/{path.name}"
    assert f"]({link})" in title.source
    assert install["id"] == "install"
    assert install.source == first.source


@each
def test_links_between_notebooks_lead_to_one(path):
    text = "\n".join(sources(path))

    found = re.findall(r"\]\(((?!https:)[^)]+)\)", text)

    assert all((path.parent / link).is_file() for link in found)


@each
def test_what_it_imports_of_ours_is_there(path):
    """Executing a notebook takes a minute; a module that has moved shows at once."""
    cells = (x.source for x in code(execute.read(path)))
    python = (x for x in cells if not x.startswith("%%"))
    found = [
        (node.module, alias.name)
        for text in python
        for node in ast.walk(ast.parse(re.sub(r"^[%!].*", "", text, flags=re.M)))
        if isinstance(node, ast.ImportFrom)
        and node.module.partition(".")[0] in ("para_jax", "train")
        for alias in node.names
    ]

    assert found
    for module, name in found:
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


@each
def test_no_path_of_any_machine_is_written_down(path):
    for source in sources(path):
        assert not re.search(r"(?<![\w.])/(home|root|Users|work|tmp|content)/", source)


@each
def test_shell_cells_stop_at_the_first_failure(path):
    for cell in code(execute.read(path)):
        assert not re.search(r"^\s*!", cell.source, re.MULTILINE)
        if "%%bash" in cell.source:
            first, *commands = cell.source.splitlines()
            assert all(x.startswith("para ") and "|" not in x for x in commands)
            assert first == ("%%bash -e" if len(commands) > 1 else "%%bash")


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Run the install cell and return the programs it called."""
    called = []

    def run(*modules):
        for module in modules:
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        monkeypatch.setattr(subprocess, "run", lambda x, **_: called.append(x))
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setenv("PATH", "/bin")
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.chdir(tmp_path)
        names = {}
        exec(execute.read(execute.NOTEBOOKS[0]).cells[1].source, names)
        return called, names

    return run


def test_outside_of_colab_nothing_is_installed(install, tmp_path):
    called, names = install()

    assert called == []
    assert names["checkout"] == tmp_path.parent


def test_on_colab_the_repository_is_cloned_and_installed_with_its_encoder(
    install, tmp_path
):
    called, names = install("google", "google.colab")

    clone, package, encoder = called
    assert clone[:2] == ["git", "clone"]
    assert clone[-2:] == [names["REPOSITORY"], str(tmp_path / "checkout")]
    assert package[1:4] == encoder[1:4] == ["-m", "pip", "install"]
    assert package[-1] == f"{tmp_path / 'checkout'}[cli,plot,train]"
    makefile = (execute.ROOT / "Makefile").read_text()
    assert f"ENCODER := {encoder[-1]}\n" in makefile
    assert sys.path[-1] == str(tmp_path / "checkout")


def keep(path, shown):
    """Save an executed notebook for `make docs`, without the cells added here."""
    kept = copy.deepcopy(shown)
    kept.cells = kept.cells[1:-1]
    folder = execute.ROOT / "build" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(kept, folder / path.name)


@pytest.fixture
def run(tmp_path):
    """Execute a notebook, check its picture labels and return the requested values."""

    def run(number, *asked):
        notebook = execute.read(execute.NOTEBOOKS[number - 1])
        cells = [BEFORE, AFTER % ", ".join(asked)]
        before, after = map(nbformat.v4.new_code_cell, cells)
        notebook.cells = [before, *notebook.cells, after]

        shown = execute.executed(notebook, tmp_path)

        keep(execute.NOTEBOOKS[number - 1], shown)
        streams = [x for cell in code(shown) for x in cell.outputs if "text" in x]
        assert not [x.text for x in streams if x.name == "stderr"]
        said = json.loads(code(shown)[-1].outputs[0].text)
        assert list(execute.pictures(shown))
        assert all(text for labels in said["pictures"] for text in labels)
        assert len(said["pictures"]) >= len(list(execute.pictures(shown)))
        return said["asked"]

    return run


@pytest.mark.slow
def test_an_adapter_is_compressed_as_the_readme_says(run):
    parameters, ranks, accuracy, sentences = run(
        1,
        "children[1].report.parameters",
        "child.report.kept_rank",
        "accuracy",
        "task.examples",
    )

    assert parameters == 122_496  # Of `epsilon 0.9` in the table of make demo.
    assert ranks == 159
    assert sentences == 1000
    assert accuracy["parent"] == pytest.approx(0.8161, abs=0.03)  # PyTorch, on 2,170.


@pytest.mark.slow
def test_ranks_go_inside_the_training_loop_in_linen_and_in_nnx(run):
    ranks, before, after, guess, kept, alone, last = run(
        2, "ranks", "before", "after", "float(guess)", "kept", "alone", "last"
    )

    assert ranks == [576] * 59 + [288] * 25 + [144] * 46
    assert min(before, after) > guess + 0.05
    assert sum(kept.values()) == 4  # An eighth of 32.
    assert last > alone + 0.05


@pytest.mark.slow
def test_children_of_one_parent_are_as_accurate_as_in_pytorch(run, tmp_path):
    whole, one, counts, scores, best = run(
        3,
        "whole",
        "one",
        "[sum(x.examples for x in part) for part in (searched, reported)]",
        "scores",
        "{path: x.rank for path, x in best.adapters.items()}",
    )

    assert sum(counts) == 2170
    assert np.dot([whole, one], counts) / 2170 == pytest.approx(0.8161, abs=1e-4)
    assert len(scores) == 8
    file = tmp_path / "out/03/peft/best/adapter_model.safetensors"
    ends = ".lora_A.weight"
    got = {
        name.removeprefix("base_model.model.").removesuffix(ends).replace(".", "/"): x
        for name, x in safetensors.numpy.load_file(file).items()
        if name.endswith(ends)
    }
    assert {path: x.shape[0] for path, x in got.items()} == best
    sweep = sorted(x.name for x in (tmp_path / "out/03/sweep").iterdir())
    assert sweep == ["epsilon-0.9", "gamma-0.25", "gamma-0.5"]


@pytest.mark.slow
def test_an_adapter_comes_back_the_same_from_every_format(run, tmp_path):
    run(4)

    def tensors(name):
        file = tmp_path / "out/04" / name / "adapter_model.safetensors"
        return safetensors.numpy.load_file(file)

    small = tensors("small")
    # One alpha for modules of unequal ranks: a factor is multiplied by its rank and
    # divided again, each rounded to half of 2^-23.
    for name, rounding in {"back": 0, "from-kohya": 2**-23}.items():
        got = tensors(name)
        assert got.keys() == small.keys()
        for key, x in got.items():
            wanted = small[key].astype(np.float64)
            where = f"{name} {key}"
            np.testing.assert_allclose(x, wanted, rtol=rounding, err_msg=where)
    llama = tensors("llama")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    assert len(llama) == 16
    assert llama[name].shape == (8, 32)
    assert sum(x.shape[0] for k, x in tensors("llama-small").items() if "_A" in k) == 16
    assert {x.shape[0] for k, x in tensors("padded").items() if "_A" in k} == {15}
