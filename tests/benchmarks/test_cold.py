"""Tests of the cold-process benchmark: it measures, and prints saved rows."""

import json

import pytest


@pytest.mark.slow
def test_a_small_case_is_measured_saved_and_shown_again(tmp_path, monkeypatch, capsys):
    # Imported here, since the import hook only checks modules imported after it.
    from tests.benchmarks import cold

    monkeypatch.setattr(cold, "CASES", {"small": (2, 8, {"attn.q": (16, 24)})})
    saved = str(tmp_path / "rows.json")

    cold.main(["--repeats", "1", "--json", saved])

    first = capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["case"] == "small"
    # `start` and `compress` import JAX in a new process; `one` runs in this process.
    assert min(row["start"], row["compress"]) > 0.05
    assert max(row["start"], row["compress"]) < 60
    assert 0 < row["one"] < row["compress"]
    assert row["load"] >= 0
    cold.main(["--from", saved])
    assert capsys.readouterr().out == first


def test_a_table_has_the_sum_and_the_ratios(tmp_path, capsys):
    from tests.benchmarks import cold

    row = {"case": "Gemma3-4B r=16", "start": 0.5, "copy": 0.125, "compress": 1.0}
    row |= {"one": 0.25, "sixteen": 0.375, "load": 0.04, "bandwidth": 23.6e9}
    saved = tmp_path / "rows.json"
    saved.write_text(json.dumps([row | {"device": "a chip", "versions": "jax 1"}]))

    cold.main(["--markdown", "--from", str(saved)])

    shown = capsys.readouterr().out
    assert "| Gemma3-4B r=16 | 0.500 | 0.125 | 0.625 | 1.000 | 1.60 |\n" in shown
    assert "| Gemma3-4B r=16 | 0.250 | 0.375 | 1.50 |\n" in shown
    last = "a chip, jax 1; a copy moves 24 GB/s; the load at the start was 0.0.\n"
    assert shown.endswith(f"\n{last}")
