"""All tables and figures, of results without the rows for each of them."""

import dataclasses
import re

import pytest

from tests.train.experiments import planned
from train import __main__
from train.experiments import store
from train.experiments.figures import FIGURES
from train.experiments.missing import Missing
from train.experiments.results import Files
from train.experiments.tables import TABLES

# What a plan without such children, or without children that are trained on, lacks.
LACKING = {
    "paper/glue": ({"scores", "retuned", "cost"}, {"scores", "retuned"}),
    "paper/math": (
        {"epsilon", "drop", "scores", "retuned", "cost"},
        {"drop", "energy", "fisher", "scores", "retuned"},
    ),
}


@pytest.fixture(
    scope="module",
    params=[(preset, names) for preset in LACKING for names in ((), ("lora-16",))],
    ids=lambda x: f"{x[0]}-{'-'.join(x[1]) or 'all'}",
)
def left(request, tmp_path_factory):
    """A preset's results, whole or with its first entry alone."""
    preset, names = request.param
    folder = tmp_path_factory.mktemp("left")
    planned.write(folder, preset, names)
    return preset, folder


def said(text):
    (line,) = [x for x in text.splitlines() if x.startswith("Left out: ")]
    found = re.findall(r"([a-z-]+) \((no [^)]+)\)", line)
    assert line == f"Left out: {', '.join(f'{x} ({why})' for x, why in found)}"
    return dict(found)


def test_tables_that_results_have_no_rows_for_are_left_out(left, capsys):
    preset, folder = left

    __main__.main(["table", "all", "--folder", str(folder)])

    shown = capsys.readouterr().out
    found = said(shown)
    assert found.keys() == LACKING[preset][0]
    assert found["retuned"] == "no retuned.json"
    assert found["scores"] == "no para params in children.json"
    for name in TABLES.keys() - found.keys():
        for block in TABLES[name](Files(folder)):
            assert block.rows
            assert "".join(block.title.split()) in "".join(shown.split())  # Wrapped.


def test_figures_that_results_have_no_rows_for_are_left_out(left, tmp_path, capsys):
    preset, folder = left

    __main__.main(["figure", "all", "--folder", str(folder), "--out", str(tmp_path)])

    lacking = LACKING[preset][1]
    assert said(capsys.readouterr().out).keys() == lacking
    assert {x.stem for x in tmp_path.iterdir()} == FIGURES.keys() - lacking


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["table", "scores"], "grid"),
        (["table", "retuned"], "grid"),
        (["table", "cost"], "cost"),
        (["figure", "scores"], "grid"),
    ],
)
def test_one_that_is_asked_for_by_name_is_an_error_that_names_the_preset(
    words, command, left, tmp_path, capsys
):
    preset, folder = left
    out = ["--out", str(tmp_path)] if words[0] == "figure" else []

    with pytest.raises(SystemExit, match="2"):
        __main__.main([*words, "--folder", str(folder), *out])

    said = capsys.readouterr().err.removeprefix("python -m train: ")
    assert f"`python -m train {command} --preset {preset}`" in said
    assert "if that comparison has it" in said
    assert said.count("`python -m train") == 1


def test_the_parent_alone_is_compared_with_its_children_alone(tmp_path):
    planned.write(tmp_path, "paper/glue", ["lora-16"])
    files = Files(tmp_path)

    (accuracies,) = TABLES["ranks"](files)
    at_four, _ = TABLES["a"](files)

    assert [x[0] for x in accuracies.rows] == [
        *(f"PARA, rank {x}" for x in (16, 8, 4, 2, 1)),
        "LoRA, rank 16",
    ]
    assert accuracies.notes[-1].startswith("From `trained.json`, `children.json`")
    assert [x[0] for x in at_four.rows] == ["LoRA r=16, parent", "PARA γ=.25"]
    assert "Not in the results: LoRA r=4, rsLoRA" in at_four.notes[0]


@pytest.mark.parametrize(
    ("command", "lacking"),
    [
        ("table", {"a", "ranks", "epsilon", "drop"}),
        ("figure", {"methods", "ranks", "energy", "drop"}),
    ],
)
def test_what_stopped_between_two_tasks_is_left_out(command, lacking, tmp_path, capsys):
    planned.write(tmp_path, "paper/glue", ["lora-16", "lora-8"])
    found = Files(tmp_path).file("children")
    rows = [x for x in found.rows if x.task != "mrpc"]  # Trained, and not cut yet.
    store.write(tmp_path / "children.json", dataclasses.replace(found, rows=rows))

    __main__.main([command, "all", "--folder", str(tmp_path)])

    left_out = said(capsys.readouterr().out)
    assert left_out.keys() - LACKING["paper/glue"][0] == lacking
    assert left_out["drop"] == "no means over equal tasks"


@pytest.mark.parametrize("made", [TABLES, FIGURES], ids=["table", "figure"])
def test_the_retuned_of_some_tasks_are_not_beside_parents_of_all(
    made, folder, tmp_path
):
    for name in ("trained", "children", "retuned"):
        found = Files(folder).file(name)
        rows = [x for x in found.rows if name == "trained" or x.task != "nyt"]
        store.write(tmp_path / f"{name}.json", dataclasses.replace(found, rows=rows))

    with pytest.raises(Missing, match="Means over different tasks"):
        made["retuned"](Files(tmp_path))


def test_a_corrupt_file_is_an_error_of_what_is_made_of_it(tmp_path, capsys):
    planned.write(tmp_path, "paper/glue", ["lora-16"])
    (tmp_path / "spectra.json").write_text("{")

    with pytest.raises(SystemExit, match="2"):
        __main__.main(["table", "all", "--folder", str(tmp_path)])

    out, err = capsys.readouterr()
    reasons = err.removeprefix("python -m train: ").splitlines()
    assert [x.split(":")[0] for x in reasons] == ["energy", "stability"]
    assert all("spectra.json is not JSON" in x for x in reasons)
    assert said(out).keys() == LACKING["paper/glue"][0]


def test_a_folder_without_results_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["table", "all", "--folder", str(tmp_path)])

    said = capsys.readouterr().err.removeprefix("python -m train: ")
    reasons = said.splitlines()
    assert [x.split(":")[0] for x in reasons] == list(TABLES)
    assert all("is missing: `python -m train" in x for x in reasons)
