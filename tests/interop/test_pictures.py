"""Compare the shipped image adapter and its children with PEFT's outputs."""

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from tests.benchmarks.torch_backbones import SiglipClassifier
from train.commands import demo
from train.data import digits
from train.models import pretrained
from train.subjects import pictures, tasks

POLICIES = {policy.name: policy for policy in demo.POLICIES}
STEP = 12  # Of the 608 pictures, for logits.


@pytest.fixture(scope="module")
def part():
    return digits.load("armenian", "test")


@pytest.fixture(scope="module")
def images(part):
    """Return images from -1 to 1, in three equal channels."""
    grey = part.images.astype(np.float32) / 255 * 2 - 1
    return np.stack([grey] * 3, axis=-1)


@pytest.fixture(scope="module")
def task():
    return tasks.armenian()


@pytest.fixture(scope="module")
def parent():
    return para.load(tasks.ARMENIAN)


@pytest.fixture(scope="module")
def folders(parent, tmp_path_factory):
    """Return the folders of the parent and its children, as the demo saves them."""
    children = para.family(parent, list(POLICIES.values()))
    saved = demo.save(children, tmp_path_factory.mktemp("children"))
    places = dict(zip(POLICIES, (x / "peft" for x in saved), strict=True))
    return {"parent": tasks.ARMENIAN, **places}


@pytest.fixture(scope="module")
def torch_logits(folders):
    def logits(name, images):
        encoder, loading = transformers.SiglipVisionModel.from_pretrained(
            pictures.ENCODER, dtype=torch.float32, output_loading_info=True
        )
        assert not any(loading.values())
        base = SiglipClassifier(encoder, len(digits.CLASSES["armenian"]))
        model = peft.PeftModel.from_pretrained(base, str(folders[name])).eval()
        with torch.no_grad():
            x = torch.tensor(images).permute(0, 3, 1, 2)
            return model.get_base_model()(x).numpy()

    return logits


@pytest.fixture(scope="module")
def flax_logits(task, parent, folders):
    apply = jax.jit(task.model.apply)

    def logits(name, images):
        adapter = para.load(folders[name])
        head = pretrained.classifier(adapter.extra)
        adapters = para.pad(adapter.adapters, like=parent.adapters)
        lora = task.model.adapted.collection(adapters)
        params = {**task.base, "classifier": head}
        return apply({"params": params, "lora": lora}, images)

    return logits


@pytest.mark.parametrize("name", ["parent", *POLICIES])
@pytest.mark.slow
def test_the_logits_are_those_of_peft(torch_logits, flax_logits, images, name):
    some = images[::STEP]

    got = flax_logits(name, some)

    want = torch_logits(name, some)
    assert len(want) > 50
    assert np.ptp(want, axis=0).min() > 1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parent", "gamma 0.25"])
def test_the_accuracy_is_that_of_peft(
    torch_logits, task, parent, folders, part, images, name
):
    got = tasks.accuracy(task, para.load(folders[name]), like=parent)

    right = torch_logits(name, images).argmax(axis=1) == part.labels
    assert task.examples == len(right) == 608
    assert got == pytest.approx(right.mean(), abs=1.5 / len(right))
