"""Tests of the benchmark of Gemma 3's training step: it runs and loses no row."""

import dataclasses
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def gemma():
    # Imported here, since the import hook only checks modules imported after it.
    return importlib.import_module("tests.benchmarks.gemma")


@pytest.fixture
def rows():
    return importlib.import_module("tests.benchmarks.gemma_rows")


@pytest.fixture
def saved(tmp_path):
    return tmp_path / "rows.jsonl"


@pytest.mark.slow
def test_a_job_takes_a_training_step_and_writes_its_row(gemma, rows, saved):
    words = ["--job", "jax-unrolled", "--tiny", "--length", "8", "--json", str(saved)]

    gemma.main(words)

    # Without cuDNN the first row records the refusal.
    refused, row = rows.load(saved)
    assert "cuDNN" in refused.reason
    assert (row.attention, row.batch, row.length) == ("xla, for want of cudnn", 8, 8)
    assert row.speed == pytest.approx(8 * 8 / (row.ms / 1e3))
    assert 3 < row.loss < 6  # A uniform distribution over 97 tokens has a loss of 4.6.
    assert row.planned > 0


@pytest.mark.slow
@pytest.mark.interop
def test_a_job_of_peft_takes_the_same_step(gemma, rows, saved):
    pytest.importorskip("peft")
    words = ["--job", "peft", "--tiny", "--length", "8", "--json", str(saved)]

    gemma.main([*words, "--batches", "3"])

    (row,) = rows.load(saved)
    assert (row.library, row.batch, row.reason) == ("peft", 3, "")
    assert 3 < row.loss < 6


def test_a_job_that_is_cut_off_leaves_a_reason_and_a_table(gemma, saved, capsys):
    words = ["--jobs", "jax", "peft", "--tiny", "--json", str(saved)]

    gemma.main([*words, "--limit-total", "0.5", "--least", "0.4"])

    table = capsys.readouterr()
    assert "| para_jax | cudnn | named | scan | 4 | cut off after 0 s |" in table.out
    assert "out of time before peft" in table.err


def test_operations_are_those_of_a_frozen_base(gemma, rows):
    # d 32, MLP 48, 4 heads and 2 of keys of width 8, vocabulary 97, 2 layers.
    base = 2 * (32 * (32 + 2 * 16 + 32 + 3 * 48) + 4 * 32 + 2 * 8) + 97 * 32 + 32
    adapters = 2 * 16 * (64 + 48 + 48 + 64 + 80 + 80 + 80)
    attention = 2 * 3 * (2 * 10 * 10 * 32)  # Twice forward, 4 times backward; half.

    got = rows.flops(gemma.TINY, 7, 10)

    assert got == 7 * (10 * (4 * base + 6 * adapters) + attention)


def test_the_summary_compares_what_takes_no_more_memory(gemma, rows):
    def row(library, speed, peak):
        blank = rows.blank("", gemma.JOBS["jax"], 10)
        return dataclasses.replace(blank, library=library, speed=speed, peak=peak)

    table = rows.markdown(
        [
            row("peft", 100.0, 50),
            row("peft", 90.0, 90),
            row("para_jax", 150.0, 50),
            row("para_jax", 190.0, 51),
        ]
    )

    words = "1.50 times the tokens a second of the fastest of PEFT, in 100% of its"
    assert words in table


def test_what_is_compiled_is_compared_by_itself(gemma, rows):
    def row(library, form, speed, peak):
        blank = rows.blank("", gemma.JOBS["jax"], 10)
        return dataclasses.replace(
            blank, library=library, form=form, speed=speed, peak=peak
        )

    table = rows.markdown(
        [
            row("peft", "bfloat16", 100.0, 80),
            row("peft", "compile", 120.0, 60),
            row("para_jax", "scan", 90.0, 30),
        ]
    )

    assert "0.90 times the tokens a second of the fastest of PEFT, in 38%" in table
    assert "0.75 times the tokens a second of the fastest of PEFT by `torch" in table


def test_the_table_on_the_page_is_that_of_the_saved_rows(rows):
    page = (ROOT / "docs/models.md").read_text()
    saved = rows.load(ROOT / "tests/benchmarks/results/gemma-h200.jsonl")

    shown = page.partition("<!-- gemma -->")[2].partition("<!-- /gemma -->")[0]

    assert shown.strip() == rows.markdown(saved).strip()
