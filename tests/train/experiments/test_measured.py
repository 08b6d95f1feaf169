import dataclasses

import pytest

from train.experiments import measured
from train.experiments.results import Files


@pytest.fixture
def rows(row):
    values = {("movie", 0): 0.0, ("movie", 1): 0.5, ("nyt", 0): 0.25, ("nyt", 1): 0.75}
    return [
        row(task=task, seed=seed, accuracy=x, rank_total=36 * (1 + seed), params=seed)
        for (task, seed), x in values.items()
    ]


def test_the_mean_over_tasks_is_taken_for_each_seed(rows):
    got = measured.measure(rows, "lora", "rank 4")

    assert got.accuracy == {
        "movie": {0: 0.0, 1: 0.5},
        "nyt": {0: 0.25, 1: 0.75},
        "mean": {0: 0.125, 1: 0.625},
    }
    assert (got.rank, got.params) == (1.5, 0.5)


def test_what_else_was_measured_is_in_no_mean(row):
    values = {("cola", 0): 0.5, ("cola", 1): 0.25, ("mrpc", 0): 0.0, ("mrpc", 1): 0.75}
    rows = [
        row(
            task=task,
            seed=seed,
            accuracy=x,
            measures={{"cola": "matthews", "mrpc": "f1"}[task]: x - 0.7},
        )
        for (task, seed), x in values.items()
    ]

    got = measured.measure(rows, "lora", "rank 4")

    assert got.columns == ("cola", "mrpc", "mean")
    assert got.accuracy["mean"] == {0: 0.25, 1: 0.5}
    assert got.measures == {
        "cola, matthews": pytest.approx({0: -0.2, 1: -0.45}),
        "mrpc, f1": pytest.approx({0: -0.7, 1: 0.05}),
    }
    plain = [dataclasses.replace(x, measures=None) for x in rows]
    assert measured.measure(plain, "lora", "rank 4") == got._replace(measures={})


def test_a_task_that_was_left_out_is_named(rows, row):
    rows.append(row(method="sora", task="nyt"))

    with pytest.raises(ValueError, match="method 'sora', policy 'rank 4' on task 'mov"):
        measured.measure(rows, "sora", "rank 4")


def test_a_model_that_was_not_tested_is_named(rows, row):
    rows.append(row(task="nyt", seed=7, accuracy=None))

    with pytest.raises(
        ValueError, match=r"no test accuracy .* 'nyt', seed 7, learning"
    ):
        measured.measure(rows, "lora", "rank 4")


def test_a_model_that_gets_nothing_right_counts_where_tasks_are_missing(rows, row):
    rows += [row(method="sora", task="movie", seed=i, accuracy=i / 2) for i in (0, 1)]
    rows.append(row(method="sora", task="movie", seed=2, accuracy=None))

    assert measured.partial(rows, "sora", "rank 4") == {"movie": 0.25}
    assert measured.partial(rows, "lora", "rank 4") == {}


def test_means_over_different_tasks_are_not_compared(rows):
    both = measured.measure(rows, "lora", "rank 4")
    one = measured.measure(rows[:2], "lora", "rank 4")

    with pytest.raises(ValueError, match=r"movie, nyt, mean and movie\."):
        measured.differences(both, one)


def test_policies_of_a_kind_come_from_the_largest_down(row):
    names = ("rank 0.5", "rank 16", "params 0.25", "rank 2 steps 0.1", "rank 2", "")
    rows = [row(policy=x) for x in names]

    assert measured.policies(rows, "lora", "rank") == ["rank 16", "rank 2", "rank 0.5"]
    assert measured.policies(rows, "lora", "params") == ["params 0.25"]


@pytest.mark.parametrize("policy", ["rank", "rank four"])
def test_a_policy_without_a_number_is_refused(policy):
    with pytest.raises(ValueError, match=f"Policy '{policy}' has no value"):
        measured.value(policy)


def test_what_is_missing_is_named_with_its_file_and_command(files):
    with pytest.raises(ValueError, match=r"trained.json: .*'vera'.*`python -m train"):
        files.measure("trained", "vera", "rank 4")


def test_only_rows_of_the_chosen_rate_count(folder):
    from tests.train.experiments import synthetic

    rows = Files(folder).rows("trained")

    assert {x.learning_rate for x in rows} == {synthetic.CHOSEN}
