"""A run in this process: stopped and gone on with, complete, diverged."""

import dataclasses
import json

import numpy as np
import pytest

import para_jax as para
from train.commands.run import settings as as_json
from train.models import pretrained
from train.runs import fit, folder


class Stopped(Exception):
    """A run stopped in this process."""


def config(run):
    return {"run": as_json("lora", run)}


def train(run, place, stop=None):
    def on_steps(step, lines):
        if step == stop:
            raise Stopped

    return fit.fit(run, place, config(run), every=20, on_steps=on_steps)


def numbers(place):
    """Return all numbers of a run but for the time it took."""
    lines = [json.loads(x) for x in (place / folder.METRICS).read_text().splitlines()]
    for line in lines:
        assert line.pop("examples_per_second") > 0
    adapters = {
        x.relative_to(place): x.read_bytes() for x in place.glob("parent/*/*.saf*")
    }
    return lines, adapters, (place / folder.RESULTS).read_text()


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The folder of an uninterrupted run, and its results."""
    place = tmp_path_factory.mktemp("runs") / "whole"
    return place, train(settings, place)


@pytest.mark.parametrize("stop", [20, 50, 70])
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(
    settings, whole, tmp_path, stop
):
    with pytest.raises(Stopped):
        train(settings, tmp_path, stop)
    assert not (tmp_path / folder.RESULTS).exists()

    rows = train(settings, tmp_path)

    place, wanted = whole
    assert rows == wanted
    assert numbers(tmp_path) == numbers(place)


def test_every_step_has_a_line_with_all_members(settings, whole):
    place, _ = whole
    lines, _, _ = numbers(place)

    assert [x["step"] for x in lines] == list(range(1, 71))
    columns = ["loss", "accuracy", "norm", "learning_rate"]
    assert list(lines[0]) == ["step", *columns]
    assert all(len(line[name]) == 4 for line in lines for name in columns)
    # 4 steps up, and 66 down to zero, which no step reaches.
    for step, factor in {1: 1 / 4, 4: 1, 5: 1, 6: 65 / 66, 70: 1 / 66}.items():
        want = factor * np.array([1e-3, 3e-2, 1e-3, 3e-2])
        got = lines[step - 1]["learning_rate"]
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_only_the_newest_two_checkpoints_are_kept(whole):
    place, _ = whole
    found = {x.name for x in (place / folder.CHECKPOINTS).iterdir()}
    assert found == {"60", "70"}


def test_a_complete_run_is_not_run_again(settings, whole, monkeypatch):
    place, rows = whole
    monkeypatch.setattr(
        fit.subjects, "load", lambda run: pytest.fail("It read its data.")
    )

    assert train(settings, place) == rows


def test_the_test_part_is_read_for_the_best_rate_alone(settings, whole):
    _, rows = whole

    members = [(x["seed"], x["learning_rate"]) for x in rows]
    assert members == [(0, 1e-3), (0, 3e-2), (7, 1e-3), (7, 3e-2)]
    validation = np.array([x["validation"] for x in rows]).reshape(2, 2)
    best = settings.learning_rates[int(validation.mean(0).argmax())]
    assert [x["test"] is not None for x in rows] == [x == best for _, x in members]


def test_each_member_is_saved_with_its_classifier(whole):
    place, rows = whole

    names = ["seed-0-rate-0.001", "seed-0-rate-0.03"]
    names += ["seed-7-rate-0.001", "seed-7-rate-0.03"]
    heads = []
    for row, name in zip(rows, names, strict=True):
        adapter = para.load(place / folder.PARENT / name)
        heads.append(pretrained.classifier(adapter.extra)["kernel"])
        # Rank 3, on four kernels of 48 by 48 and two of 48 by 56.
        assert {x.rank for x in adapter.adapters.values()} == {3}
        assert row["rank_total"] == 3 * 6
        assert row["params"] == 3 * (4 * 96 + 2 * 104)
    assert all(x.shape == (48, 3) for x in heads)
    assert len({float(x[0, 0]) for x in heads}) == 4


def test_a_member_that_diverges_has_no_results_and_the_others_have(settings, tmp_path):
    run = dataclasses.replace(settings, learning_rates=(3e-2, 1e38))

    rows = train(run, tmp_path)

    assert [x["diverged_at"] is None for x in rows] == [True, False] * 2
    for row in rows[1::2]:
        assert {row[x] for x in ("validation", "test", "rank_total")} == {None}
    for row in rows[::2]:
        assert row["test"] > 0
    assert {x.name for x in (tmp_path / folder.PARENT).iterdir()} == {
        "seed-0-rate-0.03",
        "seed-7-rate-0.03",
    }
    lines, _, _ = numbers(tmp_path)
    assert lines[-1]["loss"][1] is None


def test_a_run_stops_when_all_members_have_diverged(settings, tmp_path):
    run = dataclasses.replace(settings, learning_rates=(1e37, 1e38))

    message = r"at step \d+ the loss is .* with a learning rate of 1e\+3[78]\. Lower"
    with pytest.raises(FloatingPointError, match=message):
        train(run, tmp_path)

    assert not (tmp_path / folder.RESULTS).exists()
    assert len((tmp_path / folder.METRICS).read_text().splitlines()) == 10


def test_a_damaged_checkpoint_is_refused_and_the_one_before_goes_on(
    settings, whole, tmp_path
):
    with pytest.raises(Stopped):
        train(settings, tmp_path, 50)
    for file in (tmp_path / folder.CHECKPOINTS / "40").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")

    with pytest.raises(ValueError, match=r"The checkpoint of step 40 in .* cannot be"):
        train(settings, tmp_path)


def test_metrics_that_end_before_the_checkpoint_are_refused(settings, tmp_path):
    with pytest.raises(Stopped):
        train(settings, tmp_path, 50)
    path = tmp_path / folder.METRICS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:33]))

    with pytest.raises(ValueError, match="ends at step 33, and the checkpoint is of"):
        train(settings, tmp_path)
