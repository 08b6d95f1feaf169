"""Word problems on a smaller language model still, from its folder to rows."""

import dataclasses
import functools
import json

import numpy as np
import pytest

import para_jax as para
from train import subjects
from train.commands.run import settings as as_json
from train.data import problems
from train.methods import lora
from train.models import pretrained
from train.posthoc import children, cuts
from train.runs import fit, folder, outcome
from train.runs.settings import Run
from train.subjects import problems as subject_of

SIZES = {"train": 21, "validation": 7, "test": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of the model, and its hash."""
    from tests.train import tiny_sums

    place = tmp_path_factory.mktemp("model")
    return place, tiny_sums.write(place)


@pytest.fixture(scope="module")
def run(model):
    """A run of seconds, with its task, for this module's tests."""
    place, sha256 = model
    loader = functools.partial(subject_of.load, folder=place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "SIZES", SIZES)
        patch.setattr(subject_of, "_BATCH", 4)
        patch.setitem(subjects.LOADERS, "problems", loader)
        yield Run(
            task="problems",
            method=lora.Lora(rank=3),
            learning_rates=(1e-3, 3e-2),
            steps=30,
            batch=4,
            backbone=sha256,
        )


class Stopped(Exception):
    """A run stopped in this process."""


def train(run, place, stop=None):
    def on_steps(step, lines):
        if step == stop:
            raise Stopped

    config = {"run": as_json("lora", run)}
    return fit.fit(run, place, config, every=10, on_steps=on_steps)


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The folder of an uninterrupted run, and its results."""
    place = tmp_path_factory.mktemp("runs") / "whole"
    return place, train(run, place)


def test_its_data_are_all_problems_with_their_solutions(run):
    subject = subjects.load(run)

    decode = subject.validation.accuracies.counter.__self__.tokenizer.decode
    assert subject.data.examples == 21
    parts = {"validation": subject.validation, "test": subject.tests["problems"]}
    for part, (batches, _) in parts.items():
        ids = np.concatenate([x.inputs for x in batches])
        labels = np.concatenate([x.labels for x in batches])
        want = [f"{x.question} {x.solution}" for x in problems.load(part)]
        assert [decode(x[x > 0].tolist()) for x in ids[: len(want)]] == want
        got = [decode(x[x >= 0].tolist()) for x in labels[: len(want)]]
        assert got == [f" {x.solution}" for x in problems.load(part)]
        assert (labels[len(want) :] == -1).all()
        assert {int(x[x >= 0][-1]) for x in labels[: len(want)]} == {1}


def test_an_answer_is_right_if_its_last_number_is():
    want = " 2 + 3 = 5. The answer is: 5"

    assert subject_of._is_right(want, " 9 - 4 = 5. The answer is: 5.")
    assert not subject_of._is_right(want, " 2 + 3 = 5. The answer is: 55")
    assert not subject_of._is_right(want, " 5")


def test_a_missing_model_and_another_one_are_refused(run, model, tmp_path):
    place, sha256 = model
    with pytest.raises(FileNotFoundError, match=r"not at .*pretrain\.generation"):
        subject_of.load(run, tmp_path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject_of, "MODEL", place)
        unnamed = dataclasses.replace(run, backbone="")
        assert subjects.identified(unnamed).backbone == sha256

    other = dataclasses.replace(run, backbone="1" * 64)
    with pytest.raises(ValueError, match=f"has the sha256 {sha256}, expected 1111"):
        subject_of.load(other, place)


@pytest.mark.slow
def test_a_run_has_a_row_a_member_and_adapters_without_a_classifier(run, whole):
    place, rows = whole

    assert [x["learning_rate"] for x in rows] == [1e-3, 3e-2]
    assert sum(x["test"] is not None for x in rows) == 1
    for row, name in zip(rows, ("0.001", "0.03"), strict=True):
        saved = place / folder.PARENT / f"seed-0-rate-{name}"
        adapter = para.load(saved)
        assert adapter.extra == {}
        config = json.loads((saved / "adapter_config.json").read_text())
        assert config["task_type"] == "CAUSAL_LM"
        assert config["base_model_name_or_path"] == "sums-model"
        assert not config.get("modules_to_save")
        assert len(adapter.adapters) == 3 * 7
        assert row["rank_total"] == 3 * 3 * 7
        assert row["validation"] * 7 == pytest.approx(round(row["validation"] * 7))
    subject = subjects.load(run)
    members = outcome.load(rows, place / folder.PARENT)
    assert outcome.rows(members, subject) == [
        {k: v for k, v in row.items() if k != "diverged_at"} for row in rows
    ]


@pytest.mark.slow
def test_it_learns_to_write_tokens_of_solutions(whole):
    place, _ = whole
    lines = fit.records.cut_back(place / folder.METRICS, 30)

    losses = np.array([x["loss"] for x in lines])[:, 1]
    assert losses[-5:].mean() < 0.8 * losses[:3].mean()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(run, whole, tmp_path):
    with pytest.raises(Stopped):
        train(run, tmp_path, 20)

    rows = train(run, tmp_path)

    place, want = whole
    assert rows == want
    for file in (place / folder.PARENT).rglob("*.safetensors"):
        other = tmp_path / folder.PARENT / file.parent.name / file.name
        assert other.read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", cuts.CUTS)
def test_children_are_cut_evaluated_and_saved(run, whole, name):
    place, _ = whole

    settings = cuts.CUTS[name]
    if name == "fisher-para":
        settings = dataclasses.replace(settings, batches=2, batch=3)
    ((child, rows),) = children.cut(name, settings, run, place).items()

    # A quarter of 63, but for the 8 that are dropped.
    total = 63 - 8 if name == "drop-top" else 15
    assert [x["rank_total"] for x in rows] == [total] * 2
    assert all(0 <= x["validation"] <= 1 for x in rows)
    saved = place / folder.CHILDREN / f"{name}-{child}" / "seed-0-rate-0.03"
    assert sum(x.rank for x in para.load(saved).adapters.values()) == total
    assert pretrained.head(para.load(saved).extra) == {}
