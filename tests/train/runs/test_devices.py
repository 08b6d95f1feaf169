"""A batch is divided over eight devices, simulated ones in a process of its own.

This file is also its program: it trains on what its first word names, sentences that
stay on the device or pictures that are streamed to it.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[3]
SETTINGS = ({}, {"devices": 8}, {"devices": 2, "accumulate": 2})


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["sentences", "pictures"])
def test_numbers_are_those_of_one_device(subject):
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    )

    done = subprocess.run(
        [sys.executable, __file__, subject],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    one, *others = json.loads(done.stdout.splitlines()[-1])
    assert [one["devices"], *(x["devices"] for x in others)] == [1, 8, 2]
    assert [x["programs"] for x in (one, *others)] == [1, 1, 1]
    assert [one["sums"], *(x["sums"] for x in others)] == [False, True, True]
    for other in others:
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-5)
        np.testing.assert_allclose(other["norm"], one["norm"], rtol=1e-4)
        assert other["learners"].keys() == one["learners"].keys()
        for path, values in one["learners"].items():
            np.testing.assert_allclose(
                other["learners"][path], values, atol=1e-5, err_msg=path
            )


def program(given):
    """Return the compiled program: devices sharing a batch add up gradients."""
    from train.runs import settings as runs, trainer

    whole, divided = runs._placers(given.run.devices)
    data, rows = next(runs.chunks(given, 0, 3, 3))
    learners, base, data = whole((runs.begin(given), given.base, data))
    values = given.rates, base, data, divided(rows)
    return trainer.advance.lower(given.trainer, learners, *values).compile().as_text()


def sentences(generator):
    """Return a model, its base, and sentences on the device."""
    from tests.train import tiny
    from train.data import arrays
    from train.models import bert

    config = tiny.config(num_hidden_layers=1)
    ids = [generator.integers(1, 11, size=2 + i % 4).tolist() for i in range(29)]
    train = arrays.pack(ids, generator.integers(0, 3, size=29).tolist(), width=5)
    model = bert.BertClassifier(config, 3)
    base = {"bert": tiny.params(model, generator)["bert"]}
    return model, base, arrays.Data(train, 29)


def pictures(generator):
    """Return a model on bytes, its base, and pictures streamed to it."""
    import PIL.Image

    from para_jax._adapters.params import nest
    from train.data import arrays, images, stream
    from train.models import siglip
    from train.subjects.images import OnBytes

    config = siglip.Config(
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=3,
        image_size=8,
        patch_size=4,
    )
    drawn = {
        path: generator.normal(scale=0.3, size=leaf.shape).astype(np.float32)
        for path, leaf in siglip.leaves(config).items()
    }
    pixels = generator.integers(256, size=(29, 9, 13, 3), dtype="u1")
    labels = np.arange(29, dtype=np.int32) % 3
    found = images.Images([*map(PIL.Image.fromarray, pixels)], labels, tuple("abc"))
    train = stream.Pictures(images=found, size=8)
    model = OnBytes(siglip.SiglipClassifier(config, 3))
    return model, {"vision_model": nest(drawn)}, arrays.Data(train, 29)


def main(subject):
    import dataclasses

    import jax

    from train.methods import lora
    from train.runs import settings as runs, trainer

    parts = {"sentences": sentences, "pictures": pictures}[subject]
    model, base, data = parts(np.random.default_rng(0))
    run = runs.Run(
        method=lora.Lora(rank=2), seeds=(0, 5), steps=6, batch=16, learning_rates=(0.1,)
    )
    found = []
    for changes in SETTINGS:
        given = runs.inputs(dataclasses.replace(run, **changes), model, base, data)
        before = trainer.advance._cache_size()
        _, last = runs.advance(given, runs.begin(given), chunk=3)
        learners = jax.tree_util.tree_leaves_with_path(last.learners)
        found.append(
            {
                "devices": len(last.learners.head["kernel"].sharding.device_set),
                "loss": last.metrics.loss.tolist(),
                "norm": last.metrics.norm.tolist(),
                "programs": trainer.advance._cache_size() - before,
                "sums": "all-reduce(" in program(given),
                "learners": {jax.tree_util.keystr(k): x.tolist() for k, x in learners},
            }
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
