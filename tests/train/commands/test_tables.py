import re

import pytest

from train import __main__
from train.experiments import documents
from train.experiments.figures import FIGURES
from train.experiments.tables import TABLES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of results drawn at random."""
    from tests.train.experiments import synthetic

    path = tmp_path_factory.mktemp("results")
    synthetic.write(path)
    return path


@pytest.fixture
def document(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text("<!-- table a -->\n<!-- /table a -->\n")
    monkeypatch.setattr(documents, "DOCUMENTS", (path,))
    monkeypatch.setenv("COLUMNS", "100")
    return path


def test_a_table_is_printed_and_nothing_is_written(folder, document, capsys):
    before = document.read_text()

    __main__.main(["table", "a", "--folder", str(folder)])

    shown = capsys.readouterr().out
    assert "Table A" in shown
    assert "PARA γ=.25" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert document.read_text() == before


def test_a_narrow_terminal_cuts_no_number_short(folder, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")

    __main__.main(["table", "cost", "--folder", str(folder)])

    assert "…" not in capsys.readouterr().out


def test_a_table_is_written_to_its_place(folder, document, monkeypatch, capsys):
    monkeypatch.setattr(documents, "FOLDER", folder)

    __main__.main(["table", "a", "--write", "--folder", str(folder)])

    assert "| PARA γ=.25 |" in document.read_text()
    assert "README.md" in capsys.readouterr().out


def test_results_of_another_folder_are_not_written_to_the_place_of_these(
    folder, document, capsys
):
    before = document.read_text()

    with pytest.raises(SystemExit):
        __main__.main(["table", "a", "--write", "--folder", str(folder)])
    assert re.search(r"No place for table '.*/a'", capsys.readouterr().err)

    assert document.read_text() == before


@pytest.mark.parametrize(("command", "names"), [("table", TABLES), ("figure", FIGURES)])
def test_an_unknown_name_is_one_sentence(command, names, folder, capsys):
    with pytest.raises(SystemExit) as error:
        __main__.main([command, "z", "--folder", str(folder)])

    assert error.value.code == 2
    assert capsys.readouterr().err == (
        f"python -m train: 'z' is unknown, expected one of {', '.join(names)}; or "
        "all.\n"
    )


@pytest.mark.parametrize(("command", "names"), [("table", TABLES), ("figure", FIGURES)])
def test_the_help_names_all(command, names, capsys):
    with pytest.raises(SystemExit):
        __main__.main([command, "--help"])

    words = capsys.readouterr().out.replace(",", " ").replace(";", " ")
    assert set(names) <= set(words.replace(".", " ").split())


def test_what_is_missing_does_not_stop_the_rest(folder, tmp_path, capsys):
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "spectra.json").write_bytes((folder / "spectra.json").read_bytes())
    out = tmp_path / "out"

    __main__.main(["figure", "all", "--folder", str(partial), "--out", str(out)])

    names = {"rank-maps", "spectra", "stability"}
    assert {x.stem for x in out.iterdir()} == names
    line = capsys.readouterr().out.splitlines()[-1]
    said = re.findall(r"([a-z]+) \(no (?:children|retuned)\.json\)", line)
    assert said == [x for x in FIGURES if x not in names]
