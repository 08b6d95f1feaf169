"""Folders of runs: accepted and refused ones."""

import json

import pytest

from train.runs import folder

CONFIG = {"run": {"method": {"name": "lora", "rank": 4}, "seeds": [0]}, "command": "x"}


def other(**method):
    return {"run": {**CONFIG["run"], "method": {"name": "lora", **method}}}


def test_a_new_folder_gets_its_settings(tmp_path):
    place = tmp_path / "a" / "b"

    with folder.opened(place, CONFIG):
        assert folder.read(place / folder.CONFIG) == CONFIG
        assert folder.results(place) is None


def test_a_folder_is_opened_again_with_equal_settings(tmp_path):
    with folder.opened(tmp_path, CONFIG):
        pass

    with folder.opened(tmp_path, {**CONFIG, "command": "y"}):
        assert folder.read(tmp_path / folder.CONFIG) == CONFIG


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (other(rank=8), "its method.rank is 4, and 8 is asked for. Choose another"),
        (other(rank=4, share=0.5), 'method.share is "not there", and 0.5 is asked for'),
    ],
)
def test_another_runs_folder_is_refused(tmp_path, config, message):
    with folder.opened(tmp_path, CONFIG):
        pass

    with (
        pytest.raises(ValueError, match=message),
        folder.opened(tmp_path, config),
    ):
        pass
    assert folder.read(tmp_path / folder.CONFIG) == CONFIG


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()

    message = r"holds 'thesis.tex' and no config.json, so it is no run's folder"
    with pytest.raises(FileExistsError, match=message):
        folder.check(tmp_path, {})
    with pytest.raises(FileExistsError, match="is a file, expected a folder"):
        folder.check(tmp_path / "thesis.tex", {})


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"run": 3'])
def test_damaged_settings_are_refused(tmp_path, text):
    (tmp_path / folder.CONFIG).write_text(text)

    with pytest.raises(ValueError, match=r"config.json' is damaged.*--out, or delete"):
        folder.check(tmp_path, CONFIG["run"])


@pytest.mark.parametrize("text", ["", "{}", '{"rows": 3}', '{"rows": [1]}'])
def test_damaged_results_are_refused(tmp_path, text):
    (tmp_path / folder.RESULTS).write_text(text)

    with pytest.raises(ValueError, match=r"results.json' is damaged"):
        folder.results(tmp_path)


def test_results_are_what_was_written(tmp_path):
    rows = [{"seed": 0, "test": 0.1 + 0.2}, {"seed": 1, "test": None}]

    folder.write(tmp_path / folder.RESULTS, {"rows": rows})

    assert folder.results(tmp_path) == rows
    assert [x.name for x in tmp_path.iterdir()] == [folder.RESULTS]


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.write(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_is_for_one_process_at_a_time(tmp_path):
    with (
        folder.opened(tmp_path, CONFIG),
        pytest.raises(FileExistsError, match="Another process runs in"),
        folder.opened(tmp_path, CONFIG),
    ):
        pass

    with folder.opened(tmp_path, CONFIG):
        pass


def test_a_run_that_was_killed_at_its_start_begins_anew(tmp_path):
    (tmp_path / ".config.json.para-new-host-1-abcd").mkdir()

    with folder.opened(tmp_path, CONFIG):
        assert json.loads((tmp_path / folder.CONFIG).read_text()) == CONFIG
