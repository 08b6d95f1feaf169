import json

import numpy as np
import pytest

from train.runs import records
from train.runs.trainer import Metrics


def lines(first=1, steps=3):
    grid = np.arange(2 * steps, dtype=np.float32).reshape(2, steps)
    metrics = Metrics(loss=grid + 0.5, accuracy=grid / 8, norm=grid)
    rates = grid * 0 + 0.25
    return records.lines(metrics, rates, first=first, examples_per_second=12.34)


def test_a_line_holds_all_members_of_a_step():
    assert lines(first=5)[1] == {
        "step": 6,
        "loss": [1.5, 4.5],
        "accuracy": [0.125, 0.5],
        "norm": [1.0, 4.0],
        "learning_rate": [0.25, 0.25],
        "examples_per_second": 12.3,
    }


def test_float32_survives_the_file(tmp_path):
    values = np.array([[1 / 3, np.pi * 1e-30]], np.float32)
    metrics = Metrics(loss=values, accuracy=values, norm=values)
    found = records.lines(metrics, values, first=1, examples_per_second=1)

    records.append(tmp_path / "x", found)

    got = records.cut_back(tmp_path / "x", 2)
    np.testing.assert_array_equal(np.float32([x["loss"][0] for x in got]), values[0])


def test_what_is_not_finite_is_null():
    values = np.array([[1, np.inf, np.nan]], np.float32)
    metrics = Metrics(loss=values, accuracy=values, norm=values)

    found = records.lines(metrics, values, first=1, examples_per_second=1)

    assert [x["loss"] for x in found] == [[1.0], [None], [None]]
    assert "NaN" not in json.dumps(found)


def test_the_file_is_cut_back_and_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records.append(path, lines(steps=7))
    with path.open("ab") as file:
        file.write(b'{"step": 8, "lo')  # As a kill leaves it.

    kept = records.cut_back(path, 4)
    records.append(path, lines(first=5))

    assert kept == lines(steps=7)[:4]
    found = [json.loads(x) for x in path.read_text().splitlines()]
    assert found == [*kept, *lines(first=5)]


def test_a_run_without_a_checkpoint_begins_with_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"

    assert records.cut_back(path, 0) == []
    assert not path.exists()
    records.append(path, lines())
    assert records.cut_back(path, 0) == []
    assert path.read_bytes() == b""


def test_a_file_that_ends_too_early_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records.append(path, lines(steps=3))

    with pytest.raises(ValueError, match="ends at step 3, and the checkpoint is of"):
        records.cut_back(path, 4)


@pytest.mark.parametrize("line", [b"{\n", b"3\n", b'{"step": 9}\n', b'{"x": 1}\n'])
def test_a_damaged_line_is_refused(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    records.append(path, lines(steps=3))
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + third)

    with pytest.raises(ValueError, match=r"line 2 is not that of step 2. Delete"):
        records.cut_back(path, 3)


def test_the_first_step_that_is_not_finite_is_when_a_member_diverged():
    found = [
        {"step": 4, "loss": [1.0, 1.0, 1.0], "norm": [1.0, 1.0, 1.0]},
        {"step": 5, "loss": [1.0, None, 1.0], "norm": [None, None, 1.0]},
        {"step": 6, "loss": [None, 1.0, 1.0], "norm": [None, 1.0, 1.0]},
    ]

    assert records.diverged(found, 3) == [5, 5, None]
