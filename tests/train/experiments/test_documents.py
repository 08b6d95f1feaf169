import re

import pytest

from train.experiments import documents
from train.experiments.results import FOLDER, Files
from train.experiments.tables import TABLES

TEXT = """# Title

<!-- table a -->
old
<!-- /table a -->
between
<!-- table cost -->
<!-- /table cost -->
"""
WRITTEN = [
    (path, name)
    for path in documents.DOCUMENTS
    for name in documents.tables(path.read_text())
]


@pytest.mark.parametrize(
    ("path", "name"), WRITTEN, ids=[f"{x.parent.name}-{name}" for x, name in WRITTEN]
)
def test_a_committed_table_is_what_the_command_gives(path, name):
    text = path.read_text()
    try:
        want = documents.body(name, Files(FOLDER))
    except FileNotFoundError:  # Not run yet: nothing may stand there.
        begin, end = f"<!-- table {name} -->\n", f"<!-- /table {name} -->"
        assert begin + end in text
    else:
        assert documents.filled(text, {name: want}) == text


def test_every_table_has_a_place():
    assert {name for _, name in WRITTEN} == set(TABLES)


def test_every_picture_of_the_results_is_committed():
    text = (FOLDER / "README.md").read_text()
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)

    assert len(pictures) == 10
    if any(FOLDER.glob("*.json")):
        assert [x for x in pictures if not (FOLDER / x).is_file()] == []


def test_only_what_is_between_the_marks_changes():
    got = documents.filled(TEXT, {"a": "new\nlines"})

    assert got == TEXT.replace("\nold\n", "\n\nnew\nlines\n\n")
    assert documents.filled(got, {"a": "new\nlines"}) == got
    assert documents.tables(got) == ["a", "cost"]


def test_tables_are_written_to_the_documents_that_have_them(tmp_path, monkeypatch):
    paths = tmp_path / "one.md", tmp_path / "two.md", tmp_path / "none.md"
    paths[0].write_text(TEXT)
    paths[1].write_text("nothing\n")
    monkeypatch.setattr(documents, "DOCUMENTS", paths)

    assert documents.write({"a": "x"}) == [paths[0]]
    assert documents.write({"a": "x"}) == []
    assert "\n\nx\n\n" in paths[0].read_text()
    with pytest.raises(
        ValueError, match=r"No place for table 'b' in .*<!-- table b -->"
    ):
        documents.write({"b": "x"})
