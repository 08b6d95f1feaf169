"""A folder of results drawn at random, made once."""

import pathlib
from typing import Any

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> pathlib.Path:
    from tests.train.experiments import synthetic

    path = tmp_path_factory.mktemp("results")
    synthetic.write(path)
    return path


@pytest.fixture(scope="session")
def files(folder) -> Any:
    from train.experiments.results import Files

    return Files(folder)


@pytest.fixture
def row() -> Any:
    """Make a row, with defaults for the fields irrelevant to a test."""
    from train.experiments.rows import Row

    defaults = {
        "task": "movie",
        "method": "lora",
        "policy": "rank 4",
        "seed": 0,
        "rank_total": 144,
        "modules": 36,
        "params": 1000,
        "accuracy": 0.75,
        "validation": 0.7,
        "learning_rate": 0.001,
        "config": "lora",
        "steps": 10,
    }
    return lambda **changes: Row(**defaults | changes)
