import jax
import numpy as np
import pytest

import para_jax as para
from train import subjects
from train.data import arrays, tokens as data
from train.evaluation import evaluate
from train.models import bert, pretrained
from train.runs import outcome

SEEDS, RATES = (0, 7), (0.1, 0.5)


@pytest.fixture
def subject(tiny, params, tokens):
    """The tiny model, with two sets to test on, of three batches and of one."""
    generator = np.random.default_rng(1)

    def part(count=3):
        batches = []
        for _ in range(count):
            ids = generator.integers(1, 11, size=(7, 5), dtype=np.int32)
            labels = generator.integers(0, 3, size=7, dtype=np.int32)
            batches.append(data.Batch(bert.Tokens(ids, ids > 0), labels))
        return batches

    zeros = np.zeros((1, 1), np.int32)
    train = arrays.Sentences(zeros, zeros[0], zeros[0])
    return subjects.Subject(
        model=bert.BertClassifier(tiny, 3),
        base={"bert": jax.tree.map(lambda x: 5 * x, params["bert"])},
        data=arrays.Data(train, 1),
        validation=evaluate.Part(part()),
        tests={"a": evaluate.Part(part()), "b": evaluate.Part(part(1))},
        peft={},
        measures={"c": evaluate.Part(part(2))},
    )


@pytest.fixture
def members(lora):
    """Members with adapters of different ranks; the third has diverged."""
    generator = np.random.default_rng(2)
    result = []
    for i, (seed, rate) in enumerate((s, r) for s in SEEDS for r in RATES):
        head = {"kernel": generator.normal(size=(6, 3)), "bias": np.zeros(3)}
        head = jax.tree.map(lambda x: x.astype(np.float32), head)
        adapters = {
            path: para.Adapter(
                a=generator.normal(size=(x.inputs, 1 + i)).astype(np.float32),
                b=generator.normal(size=(1 + i, x.outputs)).astype(np.float32),
            )
            for path, x in list(para.from_params(lora).items())[: 1 + i % 2]
        }
        adapter = para.Checkpoint(adapters=adapters, extra=pretrained.stored(head))
        result.append(outcome.Member(seed, rate, None if i == 2 else adapter))
    return result


def alone(member, subject, part):
    """Return the accuracy of one member, evaluated by itself at its own ranks."""
    head = pretrained.classifier(member.adapter.extra)
    params = {**subject.base, "classifier": head}
    lora = para.to_params(member.adapter.adapters)
    return evaluate.accuracy(subject.model, params, lora, part)


@pytest.mark.slow
def test_each_member_has_the_accuracy_that_it_has_alone(subject, members):
    rows = outcome.rows(members, subject)

    assert [(x["seed"], x["learning_rate"]) for x in rows] == [
        (0, 0.1),
        (0, 0.5),
        (7, 0.1),
        (7, 0.5),
    ]
    for member, row in zip(members, rows, strict=True):
        if member.adapter is None:
            continue
        batches = subject.validation.batches
        assert row["validation"] == alone(member, subject, batches)
        if row["test"] is None:
            assert row["tests"] == {"a": None, "b": None}
            assert row["measures"] == {"c": None}
            continue
        want = {
            name: alone(member, subject, part.batches)
            for name, part in subject.tests.items()
        }
        assert row["tests"] == want
        assert row["test"] == (want["a"] + want["b"]) / 2
        further = alone(member, subject, subject.measures["c"].batches)
        assert row["measures"] == {"c": further}
    assert len({x["validation"] for x in rows}) > 2
    assert [x["test"] is None for x in rows] == [True, False] * 2


def test_a_member_that_diverged_has_no_results(subject, members):
    row = outcome.rows(members, subject)[2]

    wanted = dict.fromkeys(("validation", "test", "rank_total", "params"))
    tests = {"tests": {"a": None, "b": None}, "measures": {"c": None}}
    assert row == {"seed": 7, "learning_rate": 0.1, **wanted, **tests}


def test_ranks_and_parameters_count_what_is_stored(subject, members):
    found = [(x["rank_total"], x["params"]) for x in outcome.rows(members, subject)]

    # One module of 6 by 6; that and one of 10 by 6.
    assert found == [(1, 12), (4, 2 * (12 + 16)), (None, None), (8, 4 * (12 + 16))]


def test_a_classifier_of_two_layers_is_stored_under_the_names_of_transformers():
    generator = np.random.default_rng(0)
    head = {
        name: {"kernel": generator.normal(size=(3, n)), "bias": np.arange(float(n))}
        for name, n in (("dense", 3), ("out_proj", 2))
    }

    stored = pretrained.stored(head)

    begin = "base_model.model.classifier."
    assert {name: x.shape for name, x in stored.items()} == {
        f"{begin}dense.weight": (3, 3),
        f"{begin}dense.bias": (3,),
        f"{begin}out_proj.weight": (2, 3),
        f"{begin}out_proj.bias": (2,),
    }
    np.testing.assert_array_equal(
        stored[f"{begin}dense.weight"], head["dense"]["kernel"].T
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
        pretrained.head(stored),
        head,
    )


def test_without_a_classifier_nothing_is_stored():
    assert pretrained.stored({}) == {}
    assert pretrained.head({"base_model.model.lm_head.weight": np.ones(2)}) == {}


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ((0.5, 0.4, 0.5, 0.7), 0.5),  # 0.5 against 0.55.
        ((0.5, 0.9, 0.6, None), 0.1),  # The mean of 0.9 and nothing is 0.45.
        ((0.5, 0.6, 0.6, 0.5), 0.1),
        ((None, None, None, None), 0.1),
    ],
)
def test_the_best_rate_has_the_best_mean_over_seeds(members, accuracies, best):
    assert outcome.best_rate(members, accuracies) == best


def test_members_are_loaded_as_they_were_saved(subject, members, tmp_path):
    rows = outcome.rows(members, subject)

    outcome.save(members, tmp_path)
    loaded = outcome.load(rows, tmp_path)

    assert [x.adapter is None for x in loaded] == [False, False, True, False]
    assert outcome.rows(loaded, subject) == rows


def test_a_classifier_is_stored_as_it_is_read():
    head = {"kernel": np.arange(6.0).reshape(3, 2), "bias": np.arange(2.0)}

    stored = pretrained.stored(head)
    got = pretrained.classifier(stored)

    assert stored["base_model.model.classifier.weight"].shape == (2, 3)
    for name, value in head.items():
        np.testing.assert_array_equal(got[name], value)


def test_children_run_in_the_compiled_program_of_their_parents(subject, members):
    parents = outcome.rows(members, subject)
    before = evaluate._count_each_right._cache_size()
    children = [
        x._replace(adapter=para.compress(x.adapter, para.Rank(1))) if x.adapter else x
        for x in members
    ]

    rows = outcome.rows(children, subject, like=members)

    assert evaluate._count_each_right._cache_size() == before
    assert [x["rank_total"] for x in rows] == [1, 2, None, 2]
    assert [x["seed"] for x in rows] == [x["seed"] for x in parents]
