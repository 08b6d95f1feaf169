"""Tasks trained once and tested on several sets, by a model with known words.

Its adapter decides whether it names the first answer to every question, or the second:
what it gets right in each set can be counted by hand.
"""

import numpy as np
import pytest

# How many first and second answers are right, in sets of unequal sizes.
RIGHT = {
    "boolq": (1, 2),
    "piqa": (3, 1),
    "siqa": (2, 3),
    "hellaswag": (0, 4),
    "winogrande": (5, 0),
    "arc-e": (1, 5),
    "arc-c": (4, 2),
    "obqa": (1, 1),
}
SAID = (
    "true answer1 ending1 solution1 option1",
    "false answer2 ending2 solution2 option2",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from train.presets.paper import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def place(folders, tmp_path, monkeypatch):
    import datasets

    from train import subjects
    from train.data import commonsense
    from train.grid import training
    from train.presets import PLANS
    from train.runs.settings import Run

    def questions(task, **_):
        asked = [
            commonsense.Question(f"{number} ?", ("p", "q"), right)
            for right, count in enumerate(RIGHT[task])
            for number in range(count)
        ]
        return [commonsense.example(task, x) for x in asked]

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(commonsense, "questions", questions)
    settings = Run(task="commonsense", backbone="", max_length=96, steps=3)
    subject = subjects.load(settings, folders)
    plan = PLANS["paper/commonsense"]
    return training.Place("commonsense", subject, settings, plan)


@pytest.fixture
def speaking(place, monkeypatch):
    """Make models say the first answer if the sum of their adapters is above zero."""
    import jax
    import jax.numpy as jnp

    from train.evaluation import exact_match
    from train.models import generate

    tokenizer = place.subject.validation.accuracies.counter.__self__.tokenizer
    said = np.array([tokenizer.encode(x).ids for x in SAID])

    def greedy(model, variables, prompts, *, tokens, stop):
        total = sum(x.sum() for x in jax.tree.leaves(variables["lora"]))
        words = jnp.asarray(said)[jnp.where(total > 0, 0, 1)]
        rows = len(prompts.lengths)
        ids = jnp.zeros((rows, tokens), int).at[:, : len(words)].set(words)
        return generate.Generated(ids, jnp.full(rows, len(words)))

    monkeypatch.setattr(generate, "greedy", greedy)
    exact_match._written.clear_cache()
    yield
    exact_match._written.clear_cache()


def adapters(place, totals):
    """Adapters with the signs of some numbers, `[C, ...]`."""
    import jax.numpy as jnp

    import para_jax as para

    kernels = place.subject.model.adapted.kernels(place.subject.base)
    signs = jnp.array(totals, jnp.float32)[:, None, None]
    made = {
        path: para.Adapter(
            a=signs * jnp.ones((len(totals), x.shape[0], 1)),
            b=jnp.zeros((len(totals), 1, x.shape[1])),
        )
        for path, x in kernels.items()
    }
    return place.subject.model.adapted.collection(made)


def models(count, **changes):
    from train.experiments.rows import Row

    values = {
        "task": "commonsense",
        "method": "lora",
        "policy": "rank 4",
        "rank_total": 4,
        "modules": 1,
        "params": 9,
        "validation": 0.5,
        "learning_rate": 1e-3,
        "config": "lora-4",
        "steps": 3,
    }
    return [Row(**values | changes, seed=seed) for seed in range(count)]


def share(task, answer):
    return RIGHT[task][answer] / sum(RIGHT[task])


def test_each_model_has_a_row_a_set_with_what_it_gets_right_there(place, speaking):
    from train.experiments import measured
    from train.grid import training

    rows = training.tested(place, models(3), {}, adapters(place, (1, -2, 3)))

    assert [(x.seed, x.task) for x in rows] == [(i, x) for i in range(3) for x in RIGHT]
    for row in rows:
        assert row.accuracy == pytest.approx(share(row.task, (0, 1, 0)[row.seed]))
        assert row.trained_on == "commonsense"
    found = measured.measure(rows, "lora", "rank 4")
    assert found.columns == (*RIGHT, measured.MEAN)
    # The mean of the sets as they are, not that of all questions: 17 of 35.
    means = [np.mean([share(task, x) for task in RIGHT]) for x in (0, 1)]
    assert means[0] != pytest.approx(17 / 35)
    assert found.accuracy[measured.MEAN] == pytest.approx(
        dict(enumerate((means[0], means[1], means[0])))
    )
    assert (found.rank, found.params) == (4, 9)


def test_a_set_has_the_accuracy_that_it_has_alone(place, speaking):
    from train.grid import training

    lora = adapters(place, (-1, 1))

    for name, part in place.subject.tests.items():
        alone = place.subject._replace(tests={name: part})
        rows = training.tested(place._replace(subject=alone), models(2), {}, lora)
        assert [x.task for x in rows] == [name, name]
        assert [x.accuracy for x in rows] == pytest.approx(
            [share(name, 1), share(name, 0)]
        )


@pytest.mark.slow
def test_the_tests_are_read_once_for_one_rate(place, monkeypatch):
    import dataclasses

    import jax

    from train.experiments import choice
    from train.grid import plan, training

    read = []

    def part(name, *values):
        def accuracies(model, base, heads, lora, batches):
            count = len(jax.tree.leaves(lora)[0])
            read.append((name, count))
            return np.resize(values, count)

        return subject.validation._replace(accuracies=accuracies)

    subject = place.subject
    # Of two rates the first is better on what chooses, whatever the sets say.
    subject = subject._replace(
        validation=part("validation", 0.8, 0.7),
        tests={"boolq": part("boolq", 0.1), "obqa": part("obqa", 0.9)},
    )
    few = dataclasses.replace(
        place.plan, rates=(1e-3, 1e-2), search_seeds=(0,), other_seeds=(1,)
    )
    short = dataclasses.replace(place.settings, batch=2)
    place = place._replace(subject=subject, settings=short, plan=few)
    entry = plan.PARENT

    trained = training.train(place, entry.config)
    assert {name for name, _ in read} == {"validation"}
    rows = training.rows(place, trained, entry)

    assert [x for x in read if x[0] != "validation"] == [("boolq", 2), ("obqa", 2)]
    tried = [(x.task, x.seed, x.learning_rate, x.accuracy) for x in rows]
    assert tried == [
        ("commonsense", 0, 1e-2, None),
        ("boolq", 0, 1e-3, 0.1),
        ("obqa", 0, 1e-3, 0.9),
        ("boolq", 1, 1e-3, 0.1),
        ("obqa", 1, 1e-3, 0.9),
    ]
    assert choice.chosen(rows) == rows[1:]
