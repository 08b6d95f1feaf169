import pytest

from train.experiments import choice


def test_the_rate_of_the_largest_mean_validation_accuracy_is_chosen(row):
    # At 0.1 one seed is best of all, but the mean is not.
    table = {0.1: (0.9, 0.5), 0.2: (0.75, 0.7), 0.4: (0.7, 0.6)}
    rows = [
        row(learning_rate=rate, seed=seed, validation=x, accuracy=1 - x)
        for rate, values in table.items()
        for seed, x in enumerate(values)
    ]

    assert choice.rates(rows) == {("movie", "lora", "rank 4"): 0.2}
    assert choice.chosen(rows) == rows[2:4]


def test_every_task_method_and_policy_has_its_own_choice(row):
    names = ("task", "method", "policy")
    groups = [
        ("movie", "lora", "rank 4"),
        ("nyt", "lora", "rank 4"),
        ("movie", "sora", "rank 4"),
        ("movie", "lora", "rank 2"),
    ]
    rows = [
        row(**dict(zip(names, group, strict=True)), learning_rate=rate, validation=x)
        for number, group in enumerate(groups)
        for rate, x in ((0.1, 0.6 + 0.1 * (number % 2)), (0.2, 0.65))
    ]

    got = choice.rates(rows)

    assert got == {x: (0.2, 0.1)[i % 2] for i, x in enumerate(groups)}


def test_sets_that_test_one_training_have_one_rate(row):
    sets = {"boolq": 0.9, "obqa": 0.2}
    tested = [
        row(task=task, learning_rate=0.2, seed=seed, validation=0.7, accuracy=accuracy)
        for task, accuracy in sets.items()
        for seed in (0, 1)
    ]
    # The others met no set: they are of what was trained on.
    lost = [
        row(task="commonsense", learning_rate=x, validation=y, accuracy=None)
        for x, y in ((0.1, 0.7), (0.4, 0.6))
    ]
    another = row(task="gsm8k", learning_rate=0.4)

    rows = [*lost, *tested, another]

    assert choice.rates(rows) == {
        ("commonsense", "lora", "rank 4"): 0.2,
        ("mathematics", "lora", "rank 4"): 0.4,
    }
    assert choice.chosen(rows) == [*tested, another]


def test_rates_are_compared_on_the_seeds_that_all_of_them_have(row):
    rows = [
        row(learning_rate=0.1, seed=0, validation=0.6),
        row(learning_rate=0.2, seed=0, validation=0.7),
        row(learning_rate=0.1, seed=1, validation=0.9),
    ]

    assert choice.rates(rows) == {("movie", "lora", "rank 4"): 0.2}


def test_of_equal_rates_the_smallest_is_taken(row):
    rows = [
        row(learning_rate=x, validation=0.5, accuracy=None) for x in (0.4, 0.1, 0.2)
    ]

    assert set(choice.rates(rows).values()) == {0.1}


def test_of_rates_equal_but_for_rounding_the_tested_one_is_taken(row):
    rows = [
        row(learning_rate=0.1, seed=0, validation=0.333333, accuracy=None),
        row(learning_rate=0.1, seed=1, validation=0.666667, accuracy=None),
        row(learning_rate=0.2, seed=0, validation=0.5),
        row(learning_rate=0.2, seed=1, validation=0.499999),
    ]

    assert set(choice.rates(rows).values()) == {0.2}


def test_a_single_rate_needs_no_validation(row):
    assert choice.chosen([row(validation=None)]) == [row(validation=None)]


def test_rates_without_validation_cannot_be_compared(row):
    rows = [row(learning_rate=x, validation=None) for x in (0.1, 0.2)]

    with pytest.raises(ValueError, match=r"movie lora rank 4: 0.1, 0.2 .* without val"):
        choice.rates(rows)


def test_rates_without_a_common_seed_cannot_be_compared(row):
    rows = [row(learning_rate=0.1, seed=0), row(learning_rate=0.2, seed=1)]

    with pytest.raises(ValueError, match="no seed in common"):
        choice.rates(rows)
