import itertools
import re
import sys
import unicodedata

import numpy as np
import pytest

from tests.train.data import boxes
from train.data import fonts, glyphs

TEXT = frozenset("AΑАOoЗ3жfgჰԱ7①→中")


@pytest.fixture(scope="module")
def faces():
    """The upright and oblique DejaVu faces, with a few characters each."""
    found = fonts.find(fonts.folders()[:1])
    return [
        face._replace(characters=face.characters & TEXT)
        for face in found
        if face.family.startswith("DejaVu S")
    ]


@pytest.fixture(scope="module")
def collected(faces):
    return glyphs.collect(faces)


# Of what Unicode has given a meaning.
EVERY = [
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(character) not in {"Cn", "Co", "Cs"}
]


def test_no_number_of_any_script_is_seen():
    seen = [x for x in EVERY if glyphs.is_seen(x)]

    assert len(seen) > 10_000
    assert not [x for x in seen if unicodedata.digit(x, None) is not None]
    assert not [x for x in seen if unicodedata.category(x).startswith("N")]
    # Nor one in a circle, in small, or in bold: what a form stands for is no digit.
    forms = (unicodedata.normalize("NFKD", x) for x in seen)
    assert not [x for x in forms if re.search(r"\d", x)]


def test_no_character_of_the_scripts_held_out_is_seen():
    for script in ("GEORGIAN", "ARMENIAN"):
        named = [x for x in EVERY if script in unicodedata.name(x, "").split()]
        assert len(named) > 80
        assert not any(map(glyphs.is_seen, named))


@pytest.mark.parametrize("character", "Aéяωאبअ→∑€あ")
def test_letters_and_symbols_of_other_scripts_are_seen(character):
    assert glyphs.is_seen(character)


@pytest.mark.parametrize(
    "character", ["Ａ", "𝐀", "ﬁ", "ⓐ", ".", " ", "\u0301", "\ue000"]
)
def test_forms_marks_and_what_has_no_name_are_not_seen(character):
    assert not glyphs.is_seen(character)


def test_of_the_large_scripts_one_character_in_25_is_seen():
    for first, last in ((0x4E00, 0x9FFF), (0xAC00, 0xD7A3)):
        some = [glyphs.is_seen(chr(x)) for x in range(first, last + 1)]
        assert np.mean(some) == pytest.approx(1 / 25, rel=0.15)


def test_what_looks_alike_is_one_class(collected):
    assert "".join(sorted("AΑА")) in collected.classes
    assert {"O", "o", "f", "g", "ж", "→"} <= set(collected.classes)


def test_no_class_shows_what_is_held_out(collected):
    assert not set("".join(collected.classes)) & set("37ჰԱ①中")


def test_a_letter_that_looks_like_a_digit_is_left_out(tmp_path):
    # In this font Z is drawn as 2.
    path, widths = tmp_path / "f.ttf", {".notdef": 9, "z": 200, "two": 200, "y": 500}
    boxes.save(path, {"Z": "z", "2": "two", "Y": "y"}, widths, family="Seven")

    assert glyphs.collect(fonts.find([tmp_path]), least=1).classes == ("Y",)


def test_alike_in_less_than_half_of_the_faces_is_not_the_same():
    one, other = dict.fromkeys("AB", b"same"), {"A": b"pointed", "B": b"round"}
    assert glyphs._lookalikes([one, other]) == ["AB"]
    assert glyphs._lookalikes([one, other, other]) == ["A", "B"]
    # A face that draws one of them alone says nothing.
    assert glyphs._lookalikes([one, {"B": b"round"}, {"B": b"oval"}]) == ["AB"]


def test_every_picture_shows_its_class_in_its_face(collected, faces):
    by_name = {f"{face.name}: {face.licence}": face for face in faces}
    for image, label, number in zip(
        collected.images, collected.labels, collected.faces, strict=True
    ):
        drawn = fonts.draw(by_name[collected.names[number]], collected.classes[label])
        assert any(np.array_equal(image, picture) for picture in drawn.values())


def test_no_class_has_two_equal_pictures_or_too_few(collected):
    for label in range(len(collected.classes)):
        rows = collected.images[collected.labels == label]
        assert 4 <= len(rows) <= 28
        assert not any(np.array_equal(*x) for x in itertools.combinations(rows, 2))


def test_a_class_has_at_most_so_many_pictures(faces):
    assert set(np.bincount(glyphs.collect(faces, least=2, most=3).labels)) == {3}


def test_faces_of_families_held_out_are_not_drawn(faces, collected):
    strange = faces[0]._replace(family="Lato Semibold", characters=frozenset("N"))

    got = glyphs.collect([*faces, strange], least=1)

    assert "N" not in "".join(got.classes)
    assert got.names == collected.names


def test_the_same_faces_give_the_same_pictures(faces, collected):
    again = glyphs.collect(faces)
    for one, two in zip(collected, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_load_returns_what_was_saved(tmp_path, collected):
    path = tmp_path / "new" / "glyphs.npz"

    glyphs.save(collected, path)
    again = glyphs.load(path)

    for one, two in zip(collected, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (again.classes, again.names) == (collected.classes, collected.names)


def test_a_file_that_is_not_there_is_said_how_to_make(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m train.data.glyphs --out"):
        glyphs.load(tmp_path / "none.npz")


def test_too_few_fonts_are_refused(faces):
    with pytest.raises(ValueError, match="No character has 4 pictures in 3 faces"):
        glyphs.collect(faces[:3])
