import numpy as np
import pytest
from fontTools import ttLib

from tests.train.data import boxes
from train.data import fonts


@pytest.fixture(scope="module")
def shipped():
    """The faces shipped by matplotlib, by name."""
    faces = fonts.find(fonts.folders()[:1])
    return {face.name: face for face in faces}


def test_the_fonts_of_matplotlib_are_found_with_their_licences(shipped):
    assert {"DejaVu Sans/Book", "DejaVu Serif/Bold", "STIXGeneral/Italic"} <= set(
        shipped
    )
    assert "public domain" in shipped["DejaVu Sans/Book"].licence.lower()
    assert list(shipped) == sorted(shipped)


def test_fonts_whose_characters_are_not_what_they_say_are_left_out(shipped):
    families = {face.family for face in shipped.values()}
    assert not {"cmsy10", "cmr10", "STIXNonUnicode", "STIXSizeOneSym"} & families


def test_a_face_has_the_characters_of_its_character_map(shipped):
    face = shipped["DejaVu Sans Mono/Bold"]

    mapped = ttLib.TTFont(face.path)["cmap"].getBestCmap()

    assert face.characters <= set(map(chr, mapped))
    assert {"A", "ж", "ა", "→"} <= face.characters
    assert "中" not in face.characters


def test_what_is_drawn_is_centred_and_fills_40_pixels(shipped):
    drawn = fonts.draw(shipped["DejaVu Sans/Book"], "Alﬃ.")

    assert list(drawn) == ["A", "l", "ﬃ", "."]
    for picture in drawn.values():
        spans = [np.flatnonzero(picture.any(axis=x))[[0, -1]] for x in (0, 1)]
        assert max(np.ptp(span) for span in spans) == 39
        assert all(46 <= span.sum() <= 48 for span in spans)
        assert picture.dtype == np.uint8
        assert not (picture % 17).any()


def test_what_is_drawn_has_its_shape(shipped):
    drawn = fonts.draw(shipped["DejaVu Sans/Bold"], "OLl")

    assert drawn["O"][24, 24] == 0  # A ring,
    assert drawn["O"][24].max() == 255
    assert drawn["L"][4:20, 30:].max() == 0  # a corner that opens to the upper right,
    assert drawn["l"].any(axis=0).sum() < 16  # and a bar.


def test_characters_without_a_glyph_or_without_ink_are_left_out(shipped):
    assert list(fonts.draw(shipped["DejaVu Sans/Book"], "中 \u00a0\u200bA")) == ["A"]


def test_two_faces_draw_a_character_differently(shipped):
    one, two = (
        fonts.draw(shipped[f"DejaVu {x}"], "g")["g"]
        for x in ("Sans/Book", "Serif/Book")
    )
    assert np.abs(one.astype(int) - two).mean() > 10


@pytest.fixture
def folder_of_boxes(tmp_path):
    """A folder with a font: one box for nine letters, and `x` for itself."""
    characters = {"x": "x", "𝄞": ".notdef"} | dict.fromkeys("abcdefghi", "box")
    boxes.save(
        tmp_path / "boxes.ttf",
        characters,
        dict.fromkeys([".notdef", "box", "x"], 500),
        family="Boxes of Nine",
    )
    return tmp_path


def test_a_box_that_stands_for_many_characters_is_no_glyph_of_any(folder_of_boxes):
    (face,) = fonts.find([folder_of_boxes])

    assert face.name == "Boxes of Nine/Regular"
    assert face.characters == {"x"}
    assert list(fonts.draw(face, "abx𝄞")) == ["x"]


def test_every_face_of_a_collection_is_found(tmp_path, tmp_path_factory):
    single = tmp_path_factory.mktemp("single")
    names = ["First Box", "Second Box"]
    for name in names:
        widths = {".notdef": 9, "x": 60 * len(name)}
        boxes.save(single / f"{name}.ttf", {"x": "x"}, widths, family=name)
    collection = ttLib.TTCollection()
    collection.fonts = [ttLib.TTFont(single / f"{name}.ttf") for name in names]
    collection.save(tmp_path / "both.ttc")

    first, second = fonts.find([tmp_path])

    assert [first.family, second.family] == names
    assert (first.index, second.index) == (0, 1)
    wide = fonts.draw(second, "x")["x"].any(axis=0).sum()
    assert wide > fonts.draw(first, "x")["x"].any(axis=0).sum()


def test_of_two_faces_with_one_name_the_first_is_taken(
    folder_of_boxes, tmp_path_factory
):
    other = tmp_path_factory.mktemp("other")
    (other / "copy.ttf").write_bytes((folder_of_boxes / "boxes.ttf").read_bytes())

    (face,) = fonts.find([other, folder_of_boxes])

    assert face.path == other / "copy.ttf"


def test_a_place_without_fonts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"No fonts \(.ttf, .otf, .ttc\) in"):
        fonts.find([tmp_path])


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("Noto Sans Thai/Bold", "Noto Sans"),
        ("FreeMono/Bold Oblique", "FreeMono"),
        ("Hack/Regular", "DejaVu Sans"),
    ],
)
def test_a_design_is_a_family_without_its_script(name, want):
    assert fonts.design(name) == want
