import bz2
import json

import numpy as np
import PIL.Image
import pytest

from train.data import forms


@pytest.fixture
def file(tmp_path):
    """Writes a file of text, and returns it."""

    def file(text, name="file.txt"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return file


def values(rows):
    return [dict(x.values) for x in rows]


def test_a_list_and_lines_of_json_give_their_objects(file):
    rows = [{"a": "one\u2028two", "b": ""}, {"a": "\u00e9\n", "b": "x"}]

    assert values(forms.json_list(file(json.dumps(rows)))) == rows
    lines = "\n".join(json.dumps(x, ensure_ascii=False) for x in rows)
    # With the last line's end and without it; Git may write both kinds of ends.
    for text in (lines, lines + "\n", lines.replace("\n", "\r\n")):
        assert values(forms.json_lines(file(text))) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "file.txt' holds {}, expected a list of objects. Is it damaged"),
        ("[1, 2]", "file.txt', row 1 is 1, expected an object of strings"),
        ('[{"a": "x"}, {"a": 2}]', "row 2 is {'a': 2}, expected an object of strings"),
        ("version https://x", "file.txt' is no JSON .*line 1 column 1.*'version http"),
        ("[" * 100_000, r"file.txt' is no JSON \(.*recursion.*\): '\[+'?\.\.\."),
        (b"[\xff]", "file.txt' is no text in UTF-8"),
    ],
)
def test_other_json_is_refused(file, text, message):
    with pytest.raises(ValueError, match=message):
        list(forms.json_list(file(text)))


def test_a_bad_line_of_json_is_named(file):
    with pytest.raises(ValueError, match=r"file.txt', line 2 is no JSON \(Expecting"):
        list(forms.json_lines(file('{"a": "b"}\n\n{"a": "b"}\n')))
    with pytest.raises(ValueError, match=r"line 1 is \['a'\], expected an object"):
        list(forms.json_lines(file('["a"]\n')))


def test_a_table_has_its_names_in_the_first_line_or_is_given_them(file):
    # Quotes are text, and so is what other readers take for the end of a line.
    lines = ['1\tHe said " no .', "0\tone\x85two ", "1\t"]
    want = [dict(zip("ab", x.split("\t"), strict=True)) for x in lines]
    text = "\n".join(["a\tb", *lines])

    assert values(forms.table(file(text))) == want
    assert values(forms.table(file(b"\xef\xbb\xbf" + text.encode()))) == want
    assert values(forms.table(file("\n".join(lines)), names=("a", "b"))) == want
    assert [x.where[-8:] for x in forms.table(file(text))] == [
        f"', line {x}"[-8:] for x in (2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("line", "got"), [("only", "1 fields: 'only'"), ("a\tb\tc", "3 fields")]
)
def test_a_line_of_another_number_of_fields_is_refused(file, line, got):
    text = f"sentence\tlabel\nfine\t1\n{line}\n"
    message = f"file.txt', line 3, has {got}.*, expected 2: sentence, label. Is it dam"
    with pytest.raises(ValueError, match=message):
        list(forms.table(file(text)))


QUESTION = ["Baking: Flour: in a bowl. she", "2", "sings.", "sits.", "stirs.", "runs."]


def packed(lines):
    return bz2.compress("".join(f"{x}\n" for x in lines).encode())


def test_six_lines_are_a_question_of_hellaswag(file):
    (row, second) = forms.endings(file(packed(QUESTION * 2)))

    assert row.values == second.values
    assert dict(row.values) == {
        "activity_label": "Baking",
        "ctx": "Flour: in a bowl. she",
        "label": "2",
        "endings": ["sings.", "sits.", "stirs.", "runs."],
    }
    assert second.where.endswith("file.txt', line 7")


@pytest.mark.parametrize("count", range(1, 6))
def test_fewer_lines_are_refused(file, count):
    bad = file(packed([*QUESTION, *QUESTION[:count]]))
    with pytest.raises(ValueError, match=r"line 7 begins \['Baking: Flour.*, expected"):
        list(forms.endings(bad))


@pytest.mark.parametrize(
    ("line", "new"), [(0, "no colon"), (1, "4"), (1, "-1"), (1, "2 "), (4, "")]
)
def test_bad_questions_are_refused(file, line, new):
    lines = [new if x == line else old for x, old in enumerate(QUESTION)]
    with pytest.raises(ValueError, match=r"line 1 begins .*a number from 0 to 3 and 4"):
        list(forms.endings(file(packed(lines))))


def test_what_is_not_packed_whole_is_refused(file):
    for bad in (b"Baking: ", packed(QUESTION)[:-9]):
        with pytest.raises(ValueError, match=r"file.txt' is no bzip2 file"):
            list(forms.endings(file(bad)))


def test_pictures_are_in_the_folders_of_their_classes(tmp_path):
    for name in ("dog/b.png", "dog/a.png", "cat/c.png", "dog/list.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        array = np.full((2, 3, 3), 7, np.uint8)
        PIL.Image.fromarray(array).save(tmp_path / name, format="png")
    (tmp_path / "README.md").touch()

    rows = list(forms.pictures(tmp_path))

    names = ("cat/c.png", "dog/a.png", "dog/b.png")
    assert [x.values["image"] for x in rows] == [str(tmp_path / x) for x in names]
    assert [x.values["label"] for x in rows] == ["cat", "dog", "dog"]
    assert forms.classes(tmp_path) == ("cat", "dog")
