"""A batch is divided over eight devices, simulated ones in a process of its own.

This file is also its program.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = ({}, {"devices": 8}, {"devices": 4, "accumulate": 2})


@pytest.mark.slow
def test_numbers_are_those_of_one_device():
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    )

    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    one, eight, four = json.loads(done.stdout.splitlines()[-1])
    assert [one["devices"], eight["devices"], four["devices"]] == [1, 8, 4]
    assert [one["sums"], eight["sums"], four["sums"]] == [False, True, True]
    for other in (eight, four):
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-5)
        np.testing.assert_allclose(other["norm"], one["norm"], rtol=1e-4)
        np.testing.assert_allclose(other["kernel"], one["kernel"], atol=1e-5)


def program(given):
    """Returns the compiled program: devices that share a batch add up gradients."""
    from train import run as runs
    from train import trainer

    rows = runs._sharder(given.run.devices)(given.rows[:, :3])
    learners = runs.begin(given)
    values = given.rates, given.base, given.data, rows
    return trainer.advance.lower(given.trainer, learners, *values).compile().as_text()


def main():
    import dataclasses

    from tests.train import tiny
    from train import run as runs
    from train.data import arrays
    from train.methods import lora
    from train.models import bert

    config = tiny.config(num_hidden_layers=1)
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, 11, size=2 + i % 4).tolist() for i in range(29)]
    train = arrays.pack(ids, generator.integers(0, 3, size=29).tolist(), width=5)
    model = bert.BertClassifier(config, 3)
    params = tiny.params(model, generator)
    run = runs.Run(
        method=lora.Lora(rank=2), seeds=(0, 5), steps=6, batch=16, learning_rates=(0.1,)
    )
    found = []
    for changes in SETTINGS:
        given = runs.inputs(
            dataclasses.replace(run, **changes),
            model,
            {"bert": params["bert"]},
            arrays.Data(train, 29),
        )
        _, last = runs.advance(given, runs.begin(given), chunk=3)
        kernel = last.learners.head["kernel"]
        found.append(
            {
                "devices": len(kernel.sharding.device_set),
                "loss": last.metrics.loss.tolist(),
                "norm": last.metrics.norm.tolist(),
                "sums": "all-reduce(" in program(given),
                "kernel": kernel.tolist(),
            }
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
