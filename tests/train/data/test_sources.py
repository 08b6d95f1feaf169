import dataclasses

import pytest

from train.data import sources

# From the papers of the sets, and the counts of their repositories.
COUNTS = {
    "cifar10": {"train": 50000, "test": 10000},
    "cifar100": {"train": 50000, "test": 10000},
    "eurosat": {"all": 27000},
    "flowers": {"train": 1020, "validation": 1020, "test": 6149},
    "pets": {"train": 3680, "test": 3669},
    "cars": {"train": 8144, "test": 8041},
    "food": {"train": 75750, "test": 25250},
    "mnli": {"train": 392702, "test": 9815, "mismatched": 9832},
    "sst2": {"train": 67349, "test": 872},
    "cola": {"train": 8551, "test": 1043},
    "qnli": {"train": 104743, "test": 5463},
    "mrpc": {"train": 3668, "test": 408},
    "commonsense170k": {"train": 170420},
    "boolq": {"test": 3270},
    "piqa": {"test": 1838},
    "siqa": {"test": 1954},
    "hellaswag": {"test": 10042},
    "winogrande": {"test": 1267},
    "arc-e": {"test": 2376},
    "arc-c": {"test": 1172},
    "obqa": {"test": 500},
    "metamathqa": {"train": 395000},
    "gsm8k": {"train": 7473, "test": 1319},
    "math": {"train": 7500, "test": 5000},
    "rte": {"train": 2490, "test": 277},
    # BoolQ, ARC's easy and hard questions, OpenBookQA.
    "commonsense17k": {"train": 9427 + 2251 + 1119 + 4957},
}

CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    "eurosat": 10,
    "flowers": 102,
    "pets": 37,
    "cars": 196,
    "food": 101,
    "mnli": 3,
    **dict.fromkeys(("sst2", "cola", "qnli", "mrpc", "rte"), 2),
}


def test_the_table_has_all_sets_with_their_counts():
    got = {
        name: {part: wanted.count for part, wanted in x.parts.items()}
        for name, x in sources.SOURCES.items()
    }
    assert got == COUNTS


def test_the_table_has_the_numbers_of_classes():
    got = {name: x.classes for name, x in sources.SOURCES.items() if x.classes}
    assert got == CLASSES


def test_the_paper_s_metric_comes_first():
    metrics = {x.name: x.metrics for x in sources.GLUE}
    assert {x[0] for x in metrics.values()} == {"accuracy"}
    assert metrics["cola"][1:] == ("matthews",)
    assert metrics["mrpc"][1:] == ("f1",)


def test_an_unknown_set_is_refused():
    with pytest.raises(
        ValueError, match="Unknown data set 'imagenet', expected one of"
    ):
        sources.find("imagenet")


def test_the_table_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        sources.find("food").classes = 102
