"""Sentences by the encoder of the installed package."""

from train import subjects
from train.runs.settings import Run


def test_a_task_becomes_its_three_parts():
    found = subjects.load(Run(task="nyt", max_length=12))

    (name,) = found.tests
    parts = [found.validation.batches, found.tests[name].batches]
    counts = [found.data.examples, *(sum(x.examples for x in part) for part in parts)]
    assert name == "nyt"
    assert sum(counts) == 5190
    assert found.data.train.ids.shape == (8192, 12)
    assert found.data.train.lengths[: found.data.examples].max() == 12
    widths = {x.inputs.ids.shape[1] for part in parts for x in part}
    assert widths == {6, 12}
