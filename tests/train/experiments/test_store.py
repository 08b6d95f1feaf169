import dataclasses
import json

import pytest

from tests.train.experiments import synthetic
from train.experiments import store
from train.experiments.missing import Missing
from train.experiments.results import Files
from train.experiments.rows import Cost, Row, Spectrum

SPECTRUM = Spectrum(
    task="nyt", seed=1, module="layer/0/query", m=8, n=6, values=(2.0, 1 / 3)
)
COST = Cost(method="sora", policy="rank 4", step_seconds=0.25, peak_bytes=None)


@pytest.fixture
def path(tmp_path, row):
    path = tmp_path / "trained.json"
    rows = [row(), row(seed=1, accuracy=None)]
    store.write(path, synthetic.results(rows, ["lora"]))
    return path


def spoil(path, **changes):
    """Changes fields of the second row; `...` takes one out."""
    raw = json.loads(path.read_text())
    fields = raw["rows"][1] | changes
    raw["rows"][1] = {name: x for name, x in fields.items() if x is not ...}
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize("kind", [Row, Spectrum, Cost])
def test_what_is_read_is_what_was_written(tmp_path, row, kind):
    measures = {"matthews": -0.25, "f1": 1}
    want = {Row: row(accuracy=None, measures=measures), Spectrum: SPECTRUM, Cost: COST}[
        kind
    ]
    if kind is Spectrum:
        want = dataclasses.replace(want, values=(2.0, 0.333333))
    results = synthetic.results([want], ["lora"])
    store.write(tmp_path / "x.json", results)

    assert store.read(tmp_path / "x.json", kind) == results


def test_a_row_is_a_line_and_a_float_has_six_digits(tmp_path):
    path = tmp_path / "x.json"
    store.write(
        path, synthetic.results([SPECTRUM, dataclasses.replace(SPECTRUM, seed=2)])
    )

    lines = [x for x in path.read_text().splitlines() if "layer/0/query" in x]
    assert len(lines) == 2
    assert "[2.0, 0.333333]" in lines[0]
    assert [x.name for x in tmp_path.iterdir()] == ["x.json"]


def test_what_is_none_takes_no_space(path):
    first, second = json.loads(path.read_text())["rows"]
    assert first["accuracy"] == 0.75
    assert "accuracy" not in second
    assert "measures" not in first


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"accuracy": 75.0}, "row 2: `accuracy` is 75.0, expected 0 to 1"),
        ({"seed": "1"}, 'row 2: `seed` is str "1", expected a whole number'),
        ({"seed": True}, "row 2: `seed` is bool true, expected a whole number"),
        ({"measures": {"f1": 82.3}}, "row 2: `measures` is 82.3, expected -1 to 1"),
        ({"measures": {"f1": None}}, "row 2: `measures` is dict .*, expected numbers"),
        ({"measures": [0.5]}, "row 2: `measures` is list .*, expected numbers by name"),
        ({"params": ...}, "row 2 has no field `params`"),
        ({"parameters": 3}, "row 2 has a foreign field 'parameters', expected only"),
        ({"task": "sst3"}, "row 2: `task` is 'sst3', expected one of movie, amazon"),
        (
            {"config": "sora"},
            "row 2: `config` is 'sora', which `configs` does not hold",
        ),
        ({"learning_rate": 0.0}, "row 2: `learning_rate` is 0.0, expected"),
        ({"seed": 0}, "row 2 has the same key as row 1: movie, lora, rank 4, 0, 0.001"),
    ],
)
def test_a_corrupt_row_is_named_with_its_file_and_field(path, changes, match):
    spoil(path, **changes)

    with pytest.raises(ValueError, match=match) as error:
        store.read(path, Row)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not JSON"),
        ("[]", r"holds list \[\], expected an object"),
        ("{}", "`command` is missing, expected str"),
        ('{"command": NaN}', "is not JSON: NaN is not a number"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, text, match):
    path = tmp_path / "x.json"
    path.write_text(text)

    with pytest.raises(ValueError, match=match):
        store.read(path, Row)


def test_what_could_not_be_read_is_not_written(path, row):
    before = path.read_text()

    with pytest.raises(ValueError, match=r"`accuracy` is 2\.0"):
        store.write(path, synthetic.results([row(accuracy=2.0)], ["lora"]))
    assert path.read_text() == before


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(Missing, match=r"cost\.json is missing: `python -m"):
        Files(tmp_path).file("cost")
