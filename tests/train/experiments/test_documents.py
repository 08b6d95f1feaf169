import contextlib
import pathlib
import re

import pytest

from train.experiments import documents, results
from train.experiments.missing import Missing
from train.experiments.results import FOLDER
from train.experiments.tables import TABLES, scores
from train.experiments.tables.table import points

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
        want = documents.body(name)
    except Missing:  # Not run yet: nothing may stand there.
        begin, end = f"<!-- table {name} -->\n", f"<!-- /table {name} -->"
        assert begin + end in text
    else:
        assert documents.filled(text, {name: want}) == text


def test_every_table_has_a_place():
    assert {name for _, name in WRITTEN if "/" not in name} == set(TABLES)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["vision", "problems"])
def test_every_table_that_can_be_made_of_other_results_has_a_place(folder):
    placed = {name for path, name in WRITTEN if path.parent.name == folder}
    made = set()
    for name in TABLES:
        with contextlib.suppress(Missing):
            documents.body(mark := f"{folder}/{name}")
            made.add(mark)

    assert len(made) >= 6
    assert placed == made


@pytest.mark.parametrize(
    ("inside", "count"), [("", 10), ("vision", 9), ("problems", 5)]
)
def test_every_picture_of_the_results_is_committed(inside, count):
    text = (FOLDER / inside / "README.md").read_text()
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)

    assert len(pictures) == count
    there = {x.name for x in (FOLDER / inside / "figures").iterdir()}
    assert {pathlib.Path(x).name for x in pictures} == there


def test_the_marks_of_a_table_name_the_folder_of_its_results():
    assert documents.mark("a", FOLDER) == "a"
    assert documents.mark("a", FOLDER / "vision") == "vision/a"


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


@pytest.mark.parametrize(
    ("folder", "share", "shown"),
    [
        ("", "0.125", "| 4 of sentences | an eighth |"),
        ("", "0.03125", "| | a thirty-second |"),
        ("vision", "0.125", "| 5 of pictures | an eighth |"),
        ("vision", "0.0625", "| | a sixteenth |"),
        ("glue", "0.03125", "| 3 of GLUE | a thirty-second |"),
        ("choose", "0.03125", "| 8 sets of questions | a thirty-second |"),
    ],
)
def test_the_page_s_table_of_two_scores_is_of_the_results(folder, share, shown):
    files = results.Files(FOLDER / folder)
    cells = [
        points(scores.interval(files, name, f"params {share}"))
        for name in ("by-frobenius", "by-update")
    ]
    page = (FOLDER.parent.parent / "docs/results.md").read_text()
    row = f"{shown} {' | '.join(x.removeprefix('▲ ') for x in cells)} |"
    assert row in page
    within = [x for x in cells if not x.startswith("▲")]
    assert within == (["+2.31±2.4"] if shown.startswith("| |") and not folder else [])
