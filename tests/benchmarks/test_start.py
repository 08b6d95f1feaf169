"""Tests of the benchmark of whole processes: it runs them, and compares them."""

import json

import pytest


def test_ratios_are_to_the_process_that_imports_jax():
    from tests.benchmarks import start

    found = start.rows(
        {
            "import jax": start.Times(2.0, 4.0),
            "para --help": start.Times(0.5, 0.25),
        }
    )

    assert [(x.wall_ratio, x.core_ratio) for x in found] == [(1, 1), (0.25, 0.0625)]
    assert start.text(found).splitlines()[2].split() == (
        ["para", "--help", "0.500", "0.25", "0.250", "0.06"]
    )


@pytest.mark.slow
def test_every_process_is_run_and_saved(tmp_path, monkeypatch, capsys):
    from tests.benchmarks import cold, start

    monkeypatch.setattr(cold, "CASES", {"small": (2, 8, {"attn.q": (16, 24)})})

    start.main(["--repeats", "1", "--json", str(tmp_path / "rows.json")])

    rows = json.loads((tmp_path / "rows.json").read_text())
    shown = capsys.readouterr().out
    names = [x["name"] for x in rows]
    assert names == ["import jax", *start.SHORT, "para compress, small"]
    assert all(name in shown for name in names)
    assert all(0 < min(x["core"], x["wall"]) < 60 for x in rows)


def test_a_process_that_fails_ends_the_benchmark():
    from tests.benchmarks import start

    with pytest.raises(SystemExit, match="ended with 1"):
        start.run(("-c", "raise ValueError"))
