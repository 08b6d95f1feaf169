"""Tests of the presets' benchmark: it runs, and documented numbers were measured."""

import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def presets():
    # Imported here, since the import hook only checks modules imported after it.
    return importlib.import_module("tests.benchmarks.presets")


@pytest.fixture
def saved(presets):
    return presets.load(ROOT / "tests/benchmarks/results/presets-h200.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper/glue", "paper/math"])
def test_a_preset_is_trained_and_evaluated(presets, preset, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    words = ["--tiny", "--folder", str(tmp_path), "--json", str(rows)]

    presets.main([*words, "--one", preset, "lora-16"])
    presets.main(["--from", str(rows)])

    trained, _ = rows.read_text().splitlines()
    assert '"evaluate": null' in trained
    (row,) = presets.load(rows)
    assert row.evaluate > 0
    # 4 of 40 training rows are held out, and each test set has 12. MATH has one row for
    # each of its seven subjects.
    assert row.examples == {"paper/glue": 4 + 12, "paper/math": 4 + 12 + 7}[preset]
    assert f"| {preset} | lora-16 | 1 |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_preset_that_is_cut_off_leaves_a_reason(presets, tmp_path, capsys):
    words = ["--tiny", "--folder", str(tmp_path), "--json", str(tmp_path / "rows")]
    words += ["--presets", "paper/glue", "--limit-total", "60", "--least", "0"]

    presets.main([*words, "--steps", "-1"])

    assert "| paper/glue | lora-16 | ended: 1 |" in capsys.readouterr().out


def test_the_hours_are_those_of_all_trainings(presets):
    plan = importlib.import_module("train.presets").PLANS["paper/glue"]

    # Ten methods; three rates of one seed and two more seeds; 3000 steps of four tasks
    # and 1500 of one.
    assert presets.hours(plan, 0.01) == pytest.approx(10 * 5 * 13_500 * 0.01 / 3600)


def test_the_notes_show_the_rows_that_were_saved(presets, saved):
    notes = (ROOT / "tests/benchmarks/NOTES.md").read_text()

    shown = notes.partition("<!-- presets -->")[2].partition("<!-- /presets -->")[0]

    assert shown.strip() == presets.markdown(saved).strip()


def test_presets_say_the_hours_and_the_memory_that_were_measured(saved):
    assert [x.preset for x in saved] == [
        "paper/glue",
        "paper/vision",
        "paper/commonsense",
    ]
    for row in saved:
        module = row.preset.replace("/", ".")
        said = " ".join(
            importlib.import_module(f"train.presets.{module}").__doc__.split()
        )
        assert f"{row.hours:.1f} hours on one H200" in said
        assert f"with that {row.peak / 1e9:.1f} GB" in said
        assert row.device == "NVIDIA H200"


def test_the_memory_that_is_asked_for_follows_from_what_was_measured(saved):
    needs = importlib.import_module("train.presets").NEEDS

    asked = {name: x.memory_bytes for name, x in needs.items()}

    peaks = {x.preset: x.peak for x in saved}
    for preset, peak in peaks.items():
        assert peak <= asked[preset] <= 3 * peak
        assert asked[preset] == pytest.approx(1.5 * peak, rel=0.03)
    # Gemma's 3.88 billion params take 2 bytes each; MATH's sequences are twice as long.
    base = 3.88e9 * 2
    reckoned = base + 2 * (peaks["paper/commonsense"] - base)
    assert asked["paper/math"] == pytest.approx(1.5 * reckoned, rel=0.03)
    # The paper's GPU has 80 GB, and JAX preallocates 75 % of it.
    assert max(asked.values()) <= 60e9
