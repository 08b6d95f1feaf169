import hashlib

import datasets
import numpy as np
import PIL.Image
import pytest

from train.data import images, sources

# As on the hub: repository, split, column of the images, column of the labels, classes.
SETS = {
    "cifar10": ("uoft-cs/cifar10", "test", "img", "label", 10),
    "cifar100": ("uoft-cs/cifar100", "test", "img", "fine_label", 100),
    "flowers": ("dpdl-benchmark/oxford_flowers102", "test", "image", "label", 102),
    "pets": ("timm/oxford-iiit-pet", "test", "image", "label", 37),
    "cars": ("isaacchung/StanfordCars", "test", "image", "label", 196),
    "food": ("ethz/food101", "validation", "image", "label", 101),
}


def pixels(count):
    generator = np.random.default_rng(count)
    return [
        generator.integers(256, size=(5, 7, 3), dtype=np.uint8) for _ in range(count)
    ]


def rows(arrays, labels, classes, image="image", label="label", **more):
    features = {
        image: datasets.Image(),
        label: datasets.ClassLabel(names=[f"class {x}" for x in range(classes)]),
        **{name: datasets.Value("string") for name in more},
    }
    columns = {image: [PIL.Image.fromarray(x) for x in arrays], label: labels, **more}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


@pytest.mark.parametrize("name", SETS)
def test_a_set_gives_its_pictures_and_labels(write, counts, data, name):
    repo, split, image, label, classes = SETS[name]
    want, labels = pixels(3), [classes - 1, 0, 1]
    write(repo, {"": {split: rows(want, labels, classes, image, label, id=["a"] * 3)}})
    counts(name, test=3)

    got = images.load(name, "test", data=data)

    assert len(got.pictures) == 3
    for array, picture in zip(want, got.pictures, strict=True):
        np.testing.assert_array_equal(picture, array)
    np.testing.assert_array_equal(got.labels, labels)
    assert got.classes == tuple(f"class {x}" for x in range(classes))


def test_a_picture_is_decoded_when_it_is_taken(write, counts, data):
    bad = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"no picture", "path": None}], "label": [1]},
        datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=37)}
        ),
    )
    write("timm/oxford-iiit-pet", {"": {"train": bad}})
    counts("pets", train=1)

    got = images.load("pets", "train", data=data)

    with pytest.raises(PIL.UnidentifiedImageError):
        got.pictures[0]


def test_eurosat_is_split_from_all_that_the_hub_has(write, counts, data):
    arrays = pixels(15)
    labels = [x % 10 for x in range(15)]
    splits = {"train": (0, 9), "validation": (9, 12), "test": (12, 15)}
    write(
        "timm/eurosat-rgb",
        {"": {k: rows(arrays[a:b], labels[a:b], 10) for k, (a, b) in splits.items()}},
    )
    counts("eurosat", all=15)
    chosen = dict(zip(("train", "test"), images.eurosat_split(15), strict=True))
    assert [len(x) for x in chosen.values()] == [12, 3]

    for part, indices in chosen.items():
        got = images.load("eurosat", part, data=data)
        np.testing.assert_array_equal(got.labels, np.array(labels)[indices])
        for index, picture in zip(indices, got.pictures, strict=True):
            np.testing.assert_array_equal(picture, arrays[index])
    with pytest.raises(ValueError, match="no part 'validation', expected train, test"):
        images.load("eurosat", "validation", data=data)


def test_the_split_of_eurosat_is_four_to_one_and_stays_as_it_is():
    train, test = images.eurosat_split()

    assert (len(train), len(test)) == (21_600, 5_400)
    np.testing.assert_array_equal(np.sort(np.r_[train, test]), np.arange(27_000))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()
    # Those with the largest hashes: 0 is in the test part if its hash is among them.
    digests = [hashlib.sha256(f"0 {x}".encode()).hexdigest() for x in range(27_000)]
    smallest = sorted(digests)[21_600]
    np.testing.assert_array_equal(
        test, [x for x, digest in enumerate(digests) if digest >= smallest]
    )
    assert not np.array_equal(images.eurosat_split(seed=1)[1], test)


def test_labels_that_are_no_classes_are_refused(write, counts, data):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64")}
    )
    columns = {"image": [PIL.Image.fromarray(x) for x in pixels(2)], "label": [1, 37]}
    write(
        "timm/oxford-iiit-pet",
        {"": {"test": datasets.Dataset.from_dict(columns, features)}},
    )
    counts("pets", test=2)
    with pytest.raises(ValueError, match="'pets' has the label 37, expected 0 to 36"):
        images.load("pets", "test", data=data)


def test_other_sets_are_refused():
    with pytest.raises(ValueError, match="Unknown images 'boolq', expected cifar10, "):
        images.load("boolq", "test")
    assert set(images.NAMES) == {*SETS, "eurosat"}
    assert all(sources.find(x).columns.keys() == {"image", "label"} for x in SETS)
