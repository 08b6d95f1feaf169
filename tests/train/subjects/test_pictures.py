"""The small vision tasks, on a tiny encoder in the files of the real one."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from train import subjects
from train.data import digits
from train.models import siglip
from train.runs import fit, settings as run
from train.subjects import pictures


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a tiny encoder, drawn by NumPy, under the names of transformers."""
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {
        "hidden_size": 12,
        "intermediate_size": 10,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = siglip.Config(**sizes)
    generator = np.random.default_rng(3)
    tensors = {}
    for leaf in siglip.leaves(config).values():
        shape = leaf.shape[1:] if leaf.stacked else leaf.shape
        for name in leaf.names:
            rows = tensors.get(f"vision_model.{name}")
            x = generator.normal(scale=0.3, size=_stored(name, shape, config))
            if rows is None:
                tensors[f"vision_model.{name}"] = x.astype(np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    text = json.dumps({"model_type": "siglip_vision_model", **sizes})
    (folder / "config.json").write_text(text)
    return folder


def _stored(name, shape, config):
    if "in_proj" in name:
        return (3 * config.hidden_size, *shape[1:])
    if name.endswith("patch_embedding.weight"):
        return (shape[3], shape[2], shape[0], shape[1])
    if name.endswith("weight") and len(shape) == 2 and "embedding" not in name:
        return shape[::-1]
    return shape


def settings(encoder, **changes):
    sha = hashlib.sha256((encoder / "model.safetensors").read_bytes()).hexdigest()
    return run.Run(**{"task": "armenian", "backbone": sha, **changes})


def test_every_picture_is_in_one_batch_and_filling_rows_do_not_count(encoder):
    found = pictures.load(settings(encoder), encoder)

    for batches, part in (
        (found.validation.batches, "validation"),
        (found.tests["armenian"].batches, "test"),
    ):
        want = digits.load("armenian", part)
        labels = np.concatenate([x.labels for x in batches])
        images = np.concatenate([x.inputs for x in batches])
        np.testing.assert_array_equal(labels[labels >= 0], want.labels)
        assert (labels[len(want.labels) :] == -1).all()
        grey = want.images.astype(np.float64) / 255 * 2 - 1
        np.testing.assert_allclose(images[: len(grey), ..., 1], grey, atol=1e-6)
    assert found.data.examples == len(digits.load("armenian", "train").labels)


def test_a_batch_to_train_on_is_that_of_its_rows(encoder):
    found = pictures.load(settings(encoder), encoder)
    part = digits.load("armenian", "train")
    rows = np.array([5, 0, 3])

    batch = found.data.train.batch(rows)

    np.testing.assert_array_equal(batch.labels, part.labels[rows])
    grey = part.images[rows].astype(np.float64) / 255 * 2 - 1
    np.testing.assert_allclose(batch.inputs[..., 2], grey, atol=1e-6)


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_model_without_adapters(encoder):
    given = settings(encoder, steps=3, batch=4)
    found = pictures.load(given, encoder)
    inputs = run.inputs(given, found.model, found.base, found.data)
    begun = run.begin(inputs)
    head = jax.tree.map(lambda x: np.asarray(x[0]), begun.head)

    (progress,) = run.advance(inputs, begun)

    batch = found.data.train.batch(inputs.rows[0, 0])
    params = {**found.base, "classifier": head}
    logits = found.model.apply({"params": params}, batch.inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    got = float(progress.metrics.loss[0, 0])
    assert got == pytest.approx(float(jnp.mean(losses)), rel=1e-4)
    assert np.isfinite(progress.metrics.loss).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "gora", "pissa", "dora"])
def test_a_run_trains_and_saves_what_it_evaluates(
    encoder, tmp_path, monkeypatch, method
):
    from train.methods import METHODS

    monkeypatch.setattr(pictures, "ENCODER", encoder)
    monkeypatch.setitem(
        subjects.LOADERS, "armenian", lambda run: pictures.load(run, encoder)
    )
    given = settings(encoder, steps=12, batch=4, method=METHODS[method])

    (row,) = fit.fit(given, tmp_path / "run", {"run": {}})

    assert 0 <= row["test"] <= 1
    assert row["params"] > 0
    assert list((tmp_path / "run" / "parent").iterdir())


def test_another_encoder_is_refused(encoder):
    with pytest.raises(ValueError, match=r"has the sha256 .*, expected 0{64}"):
        pictures.load(settings(encoder, backbone="0" * 64), encoder)


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.pretrain\.vision"):
        pictures.load(run.Run(task="mnist"), tmp_path)


def test_a_run_of_no_named_encoder_is_of_the_one_that_is_there(encoder, monkeypatch):
    monkeypatch.setattr(pictures, "ENCODER", encoder)
    unnamed = run.Run(task="letters", backbone="")

    named = subjects.identified(unnamed)

    assert named == settings(encoder, task="letters")
    monkeypatch.setattr(pictures, "ENCODER", encoder / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"train\.pretrain\.vision"):
        subjects.identified(unnamed)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="Unknown task 'birds', expected movie, "):
        subjects.load(run.Run(task="birds"))
