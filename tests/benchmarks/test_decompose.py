"""Tests of the one-child benchmark: errors, ranks, and rows that survive saving."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest


@pytest.fixture
def modules():
    # Imported here, since the import hook only checks modules imported after it.
    from tests.benchmarks import accuracy, cases, clock, decompose, measure, rows

    return accuracy, cases, clock, decompose, measure, rows


def low_rank(key, m, r, n):
    rng = np.random.default_rng(key)
    return rng.standard_normal((m, r)), rng.standard_normal((r, n))


def test_the_norm_of_a_small_difference_is_that_of_the_formed_product(modules):
    accuracy, *_ = modules
    a, b = low_rank(0, 23, 5, 17)
    noise = 1e-9 * low_rank(1, 23, 5, 17)[0]
    x, y = np.concatenate([a + noise, -a], axis=1), np.concatenate([b, b])

    got = accuracy.norm_of_product(x, y)

    np.testing.assert_allclose(got, np.linalg.norm(noise @ b), rtol=1e-5)


def test_errors_are_relative_to_the_best_approximation_of_the_same_rank(modules):
    accuracy, *_ = modules
    a, b = low_rank(0, 23, 5, 17)
    u, s, vt = np.linalg.svd(2.0 * a @ b)
    k = 3
    kept = accuracy.Kept(
        s[:k] * [1, 1, 1.001], u[:, :k] * s[:k], np.diag([1, 1.01, 1]) @ vt[:k]
    )

    sigma, product = accuracy.errors(a, b, 2.0, kept)

    np.testing.assert_allclose(sigma, 1e-3, rtol=1e-9)
    np.testing.assert_allclose(product, 0.01 * s[1] / np.linalg.norm(s[:k]), rtol=1e-9)


@pytest.mark.user_defaults
def test_every_case_has_the_shapes_that_it_counts(modules):
    _, cases, *_ = modules
    for case in cases.CASES.values():
        found = jax.eval_shape(lambda case=case: case.factors("bfloat16"))
        assert sum(x.parameters for x in found.values()) == case.parameters
        assert sum(x.modules for x in found.values()) == case.modules
        assert {x.rank for x in found.values()} == {case.rank}


@pytest.mark.slow
@pytest.mark.user_defaults
def test_factors_are_the_same_every_time_and_keep_ragged_ranks(modules):
    _, cases, _, _, measure, _ = modules
    case = cases.CASES["tiny"]
    first, second = case.factors("float32"), case.factors("float32")
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(x, y)

    lengths = np.linalg.norm(first["q"].a, axis=1).mean(axis=0)
    np.testing.assert_allclose(lengths[0] / lengths[-1], cases.DECAY, rtol=0.3)
    ranks = np.concatenate([x.ravel() for x in measure.kept_ranks(first).values()])

    assert ranks.sum() == case.modules * case.rank // 4
    assert len(set(ranks)) > 1


@pytest.mark.slow
@pytest.mark.user_defaults
def test_the_command_measures_saves_and_shows_again(
    modules, monkeypatch, tmp_path, capsys
):
    _, cases, clock, decompose, _, rows = modules
    monkeypatch.setattr(clock, "cache", lambda: 2**16)
    monkeypatch.setattr(clock, "_TOTAL", 0.0)
    saved, picture = tmp_path / "rows.json", tmp_path / "rows.svg"
    methods = ["qr", "host", "paper"]
    words = f"--cases tiny --methods {','.join(methods)} --dtype float32"

    decompose.main([*words.split(), "--json", str(saved), "--plot", str(picture)])

    found = rows.load(saved)
    assert [x.method for x in found] == methods
    assert not any(x.note for x in found)
    case = cases.CASES["tiny"]
    for row in found:
        assert row.bytes == 4 * case.parameters
        assert 2 * row.bytes < row.bandwidth * row.floor_ms / 1e3 < 3 * row.bytes
        assert row.ratio == row.ms / row.floor_ms
        # Only compiled methods are much slower on the first call.
        assert row.first_ms > (0 if row.method == "host" else row.ms)
        assert 0 <= row.sigma_error < 1e-5
        assert 0 < row.product_error < 1e-5
    assert "<svg" in picture.read_text()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80

    decompose.main(["--from", str(saved), "--markdown"])

    table = [x for x in capsys.readouterr().out.splitlines() if x.startswith("|")]
    assert [x.split()[1] for x in table[2:]] == methods
    assert {x.count("|") for x in table} == {len(rows.COLUMNS) + 1}


@pytest.mark.user_defaults
def test_both_axes_of_the_picture_of_saved_rows_have_a_name(modules, tmp_path):
    *_, decompose, _, _ = modules
    saved = pathlib.Path(__file__).parent / "results" / "h200.json"
    picture = tmp_path / "rows.svg"

    decompose.main(["--from", str(saved), "--plot", str(picture)])

    texts = picture.read_text().split("<!-- ")[1:]  # A comment before its glyphs.
    assert {"adapter", "time of one child"} <= {x.split(" -->")[0] for x in texts}


@pytest.mark.user_defaults
def test_a_way_that_fails_leaves_a_row_that_says_why(modules, monkeypatch):
    _, cases, _, _, measure, rows = modules
    monkeypatch.setattr(
        measure,
        "kept_ranks",
        lambda adapters: {p: np.full(x.stack, 1) for p, x in adapters.items()},
    )

    def broken(inputs):
        raise FloatingPointError("no luck\nat all")

    monkeypatch.setitem(measure.contenders.WAYS, "paper", broken)
    place = {"device": "any", "versions": "any", "bandwidth": 1e9}

    (row,) = measure.measured(
        cases.CASES["tiny"], ["paper"], "float32", limit=1, place=place
    )

    assert row.ms is None
    assert row.note == "FloatingPointError: no luck"
    assert "paper: FloatingPointError: no luck." in rows.text([row])


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.user_defaults
def test_other_libraries_find_the_same_child_or_are_marked_as_estimates(
    modules, monkeypatch
):
    pytest.importorskip("peft")
    _, cases, clock, _, measure, _ = modules
    monkeypatch.setattr(clock, "cache", lambda: 2**16)
    monkeypatch.setattr(clock, "_TOTAL", 0.0)
    place = {"device": "any", "versions": "any", "bandwidth": 1e9}
    methods = ["torch-loop", "torch-batch", "torch-full", "peft"]

    rows = measure.measured(
        cases.CASES["tiny"], methods, "float32", limit=60, place=place
    )

    loop, batch, full, peft = rows
    for row in (loop, batch):
        assert not row.scaled
        assert 0 < row.sigma_error < 1e-5
        assert 0 < row.product_error < 1e-5
    for row in (full, peft):
        assert row.scaled
        assert row.ms > 0


def test_an_estimate_is_marked_and_shown_with_two_digits(modules):
    *_, rows = modules
    row = rows.Row(
        case="tiny", modules=6, rank=5, bytes=10**7, method="peft", dtype="float32",
        device="any", versions="any", bandwidth=1e9, floor_ms=20, ms=12345.6,
        ratio=617.28, scaled=True,
    )  # fmt: skip
    assert "| peft | ~12,000 | ~620 |" in rows.markdown([row])
    assert "| peft | 12,346 | 617 |" in rows.markdown(
        [dataclasses.replace(row, scaled=False)]
    )


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["--cases", "tiny,llama9"], "'llama9'. Known: siglip2, gemma3-4b"),
        (["--cases", "tiny", "--methods", "qr,magic"], "'magic'. Known: auto, gram"),
        (["--cases", "tiny", "--dtype", "int8"], "'int8'. Known: float32, bfloat16"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(modules, words, known):
    _, _, _, decompose, _, _ = modules
    with pytest.raises(SystemExit, match=known):
        decompose.main(words)
