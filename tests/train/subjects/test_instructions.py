"""Commonsense-170k and MetaMathQA, with a tiny Gemma 3 and a few rows of each set."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from train.presets.paper import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def subject(folders, tmp_path, monkeypatch):
    import datasets

    from train import subjects
    from train.runs.settings import Run

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def load(task, **changes):
        run = Run(task=task, backbone="", **{"max_length": 96, **changes})
        return subjects.load(run, folders)

    return load


def texts(subject, batches):
    """Return the prompt and the labelled response of each row."""
    tokenizer = subject.validation.accuracies.counter.__self__.tokenizer
    found = []
    for batch in batches:
        for ids, labels in zip(batch.inputs, batch.labels, strict=True):
            counts = labels != -1
            if counts.any():
                prompt, *_, end = ids[: 1 + counts.argmax()], *labels[counts]
                assert end == tokenizer.token_to_id("<eos>")
                found.append(
                    (tokenizer.decode(prompt), tokenizer.decode(labels[counts][:-1]))
                )
    return found


def test_all_sets_are_tested_on(subject):
    from train.data import commonsense
    from train.experiments.rows import SETS

    found = subject("commonsense")

    assert [*found.tests] == [*commonsense.TASKS] == [*SETS["commonsense"]]
    for name, (batches, _) in found.tests.items():
        answers = {commonsense.extract(name, x) for _, x in texts(found, batches)}
        assert answers <= {*commonsense.TASKS[name].names}
        assert sum(int((x.labels != -1).any(1).sum()) for x in batches) == 12
    assert len(found.tests) == 8
    assert found.data.examples == 36


def test_answers_of_problems_are_short_and_those_of_the_sets(subject, folders):
    from train.data import mathematics
    from train.experiments.rows import SETS

    found = subject("mathematics")

    assert [*found.tests] == [*mathematics.TASKS] == [*SETS["mathematics"]]
    for task, (batches, _) in found.tests.items():
        want = mathematics.problems(task, data=folders.data, subset=True)
        got = [response for _, response in texts(found, batches)]
        assert [x.split()[-1] for x in got] == [x.answer for x in want]


def test_what_is_too_long_is_not_trained_on(subject):
    long = subject("mathematics").data
    lengths = np.sort(np.asarray(long.train.lengths[: long.examples]))
    limit = int(lengths[-1]) - 1

    short = subject("mathematics", max_length=limit).data

    assert 0 < short.examples < long.examples
    assert np.asarray(short.train.lengths).max() <= limit


@pytest.mark.parametrize(
    ("task", "grader", "wanted", "written", "right"),
    [
        ("commonsense", "piqa", "the correct answer is solution2", "solution2", True),
        ("commonsense", "piqa", "the correct answer is solution2", "solution1", False),
        ("commonsense", "boolq", "the correct answer is true", "false or true", False),
        (
            "mathematics",
            "gsm8k",
            "The answer is: 18",
            "so 18. The answer is: 18.",
            True,
        ),
        ("mathematics", "gsm8k", "The answer is: 18", "18", False),
        (
            "mathematics",
            "gsm8k",
            "The answer is: 18",
            "The answer is: 17\n### Instruction: The answer is: 18",
            False,
        ),
        ("mathematics", "math", "The answer is: 1/2", r"It is $\boxed{0.5}$.", True),
        ("mathematics", "", "The answer is: 3", "The answer is: 4", False),
    ],
)
def test_answers_are_graded_as_each_set_wants(
    folders, task, grader, wanted, written, right
):
    from train.runs.settings import Run
    from train.subjects import instructions

    corpus = instructions.CORPORA[task](Run(max_length=96), folders)
    is_right = corpus.graders.get(grader, corpus.is_right)
    assert is_right(wanted, written) is right


def test_a_response_ends_as_the_model_s_files_say(folders, subject, tmp_path):
    import json
    import shutil

    import tokenizers

    from train import subjects
    from train.runs.settings import Run
    from train.subjects import Folders, instructions

    model, other = folders.weights / instructions.REPO, tmp_path / "a" / "b"
    shutil.copytree(model, other)
    said = {"eos_token": {"content": "solution2"}}
    (other / "tokenizer_config.json").write_text(json.dumps(said))
    places = Folders(weights=tmp_path, data=folders.data, subset=True)

    run = Run(task="mathematics", backbone="", max_length=96, model="a/b")
    found = subjects.load(run, places)

    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    for each, word in ((found, "solution2"), (subject("mathematics"), "<eos>")):
        (batch, *_) = each.validation.batches
        labels = [x[x != -1][-1] for x in batch.labels if (x != -1).any()]
        assert {tokenizer.id_to_token(int(x)) for x in labels} == {word}
        assert each.validation.accuracies.counter.__self__.stop == (labels[0],)
    assert found.peft == {"base_model_name_or_path": "a/b", "task_type": "CAUSAL_LM"}


@pytest.mark.slow
def test_a_language_model_learns_the_form_of_the_answers(subject):
    from train.methods import lora
    from train.runs import settings as runs
    from train.runs.settings import Run

    found = subject("commonsense")
    run = Run(
        task="commonsense",
        method=lora.Lora(rank=4),
        learning_rates=(0.03,),
        steps=20,
        batch=4,
        max_length=96,
    )
    given = runs.inputs(run, found.model, found.base, found.data)
    losses = [
        jax.device_get(x.metrics.loss)
        for x in runs.advance(given, runs.begin(given), chunk=10)
    ]
    assert losses[-1][0, -1] < 0.5 * losses[0][0, 0]
