import json
import subprocess
import sys

import numpy as np
import pytest

from train.data import fonts, glyphs
from train.models import siglip
from train.pretrain import probe, vision


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The pictures of eight characters in the faces of matplotlib."""
    faces = [
        face._replace(characters=face.characters & frozenset("AEgkЖω→∑"))
        for face in fonts.find(fonts.folders()[:1])
    ]
    path = tmp_path_factory.mktemp("glyphs") / "glyphs.npz"
    glyphs.save(glyphs.collect(faces), path)
    return path


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    """The program's output folder."""
    out = tmp_path_factory.mktemp("vision") / "encoder"
    vision.main(["--tiny", "--data", str(file), "--out", str(out)])
    return out


@pytest.mark.slow
def test_the_program_writes_an_encoder_that_loads(folder):
    config = siglip.read_config(folder)
    params = siglip.load(folder, config, np.float32)

    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    got = siglip.Siglip(config).apply({"params": params}, images)
    assert config == vision.TINY.model
    assert got.shape == (2, 24)
    assert np.isfinite(got).all()
    assert np.abs(got[0] - got[1]).max() > 1e-3


@pytest.mark.slow
def test_the_program_says_what_the_encoder_can_do(folder):
    metrics = json.loads((folder / "metrics.json").read_text())

    tasks = ["digits", "mnist", "georgian", "armenian", "letters"]
    assert list(metrics) == ["glyphs", *tasks, "minutes", "steps"]
    assert metrics["steps"] == 6
    # Hardly trained; but random features tell digits apart better than chance.
    assert 0.2 < metrics["digits"] < 1
    assert all(0 <= metrics[x] <= 1 for x in ("glyphs", *tasks))


def test_the_machine_that_trains_needs_neither_fonts_nor_their_libraries():
    missing = "PIL fontTools matplotlib mlxtend pandas sklearn tyro datasets grain"
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing.split()}))\n"
        "import train.pretrain.vision, train.pretrain.generation\n"
        "from train.data import digits\n"
        "print(len(digits.load('georgian', 'test').images))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "594"


def test_one_picture_of_fifty_is_held_out(file):
    data = glyphs.load(file)

    train, held_out = vision.split(data)

    np.testing.assert_array_equal(held_out.images, data.images[::50])
    np.testing.assert_array_equal(held_out.labels, data.labels[::50])
    assert len(train.labels) + len(held_out.labels) == len(data.images)
    seen = {x.tobytes() for x in train.images}
    assert not [x for x in held_out.images if x.tobytes() in seen]


def test_the_small_encoder_has_the_stated_size():
    leaves = siglip.leaves(vision.SMALL.model)
    # By hand: positions and patches, 6 blocks, the last norm, the pooling head.
    d, m = 192, 768
    block = 4 * (d * d + d) + 2 * d * m + m + d + 4 * d
    head = d + 4 * (d * d + d) + 2 * d * m + m + d + 2 * d
    patches = 64 * d + 4 * 4 * 3 * d + d
    want = patches + 6 * block + 2 * d + head
    assert sum(np.prod(x.shape) for x in leaves.values()) == want == 3_135_936


def test_the_probe_finds_what_an_encoder_tells():
    # An encoder that tells the mean of each quarter of a row: linear in the pixels.
    def encode(images):
        return images.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64)

    from sklearn import linear_model

    from train.data import digits

    train, test = (digits.load("digits", x) for x in ("train", "test"))
    model = linear_model.RidgeClassifier(alpha=1.272)
    model.fit(_normal(encode(train.images)), train.labels)
    x = encode(test.images)
    y = encode(train.images)
    want = model.score((x - y.mean(0)) / (y.std(0) + 1e-6), test.labels)

    assert probe.accuracy(encode, "digits") == pytest.approx(want, abs=0.01)


def test_the_probe_finds_nothing_where_nothing_is_told():
    rest = np.random.default_rng(0)
    got = probe.accuracy(lambda images: rest.normal(size=(len(images), 5)), "digits")
    assert 0.02 < got < 0.2


def _normal(x):
    return (x - x.mean(0)) / (x.std(0) + 1e-6)
