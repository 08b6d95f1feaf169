import collections
import gzip
import pathlib

import pytest

from train.data import sentiment

LINES = [
    "1\t-0.6\tEffective but too tepid biopic",
    "2\t2.0\tA fine film",
    "3\t0.5\tIt is a film",
]


def test_the_test_part_has_2170_sentences():
    got = sentiment.load_test()

    counts = collections.Counter(sentiment.CLASSES[x] for x in got.labels)
    assert counts == {"negative": 1017, "neutral": 119, "positive": 1034}
    assert len(got.texts) == 2170
    assert max(counts.values()) / 2170 == pytest.approx(0.476, abs=1e-3)


def test_every_sentence_of_the_test_part_belongs_there():
    assert {sentiment.bucket(x) for x in sentiment.load_test().texts} == set(range(20))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        # From `printf '%s' TEXT | sha256sum`: its first 8 digits, modulo 100.
        ("Effective but too tepid biopic", 0xD001774E % 100),
        ("What a waste", 0xC0CAF6A3 % 100),
        ("clichés", 0x01A44E48 % 100),
    ],
)
def test_the_bucket_is_a_hash_of_the_text(text, want):
    assert sentiment.bucket(text) == want


@pytest.mark.parametrize(
    ("rating", "want"),
    [(-4, 0), (-0.51, 0), (-0.5, 1), (0, 1), (0.5, 1), (0.51, 2), (4, 2)],
)
def test_a_rating_near_zero_is_neutral(rating, want):
    assert sentiment.label(rating) == want


def test_a_line_without_three_fields_is_refused():
    with pytest.raises(ValueError, match="Line 2 has 1 fields"):
        sentiment.parse(f"{LINES[0]}\nnothing\n")


def test_packing_keeps_the_test_part_and_is_reproducible(tmp_path):
    source, targets = tmp_path / "all.tsv", [tmp_path / "1.gz", tmp_path / "2.gz"]
    source.write_bytes("\r\n".join(LINES).encode())

    for target in targets:
        sentiment.pack_test(source, target)

    first, second = (target.read_bytes() for target in targets)
    assert first == second
    want = sentiment.parse("\n".join(LINES))
    kept = [x for x in want.texts if sentiment.bucket(x) < 20]
    assert list(sentiment.parse(gzip.decompress(first).decode()).texts) == kept
    assert 0 < len(kept) < 3


def test_the_licence_ships_with_the_sentences():
    folder = pathlib.Path(sentiment.__file__).parents[1] / "assets" / "movie"
    assert "The MIT License" in (folder / "LICENSE.txt").read_text()
