import collections
import gzip
import itertools
import pathlib

import pytest

from train.data import sentiment

LINES = [
    "1\t-0.6\tEffective but too tepid biopic",
    "2\t2.0\tA fine film",
    "3\t0.5\tIt is a film",
]


def test_the_test_part_has_2170_sentences():
    got = sentiment.load("movie", "test")

    counts = collections.Counter(sentiment.CLASSES[x] for x in got.labels)
    assert counts == {"negative": 1017, "neutral": 119, "positive": 1034}
    assert len(got.texts) == 2170
    assert max(counts.values()) / 2170 == pytest.approx(0.476, abs=1e-3)


def test_every_sentence_of_the_test_part_belongs_there():
    assert {sentiment.bucket(x) for x in sentiment.load("movie", "test").texts} == set(
        range(20)
    )


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


def test_a_rating_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"Line 2 has the mean rating '4\.5'"):
        sentiment.parse(f"{LINES[0]}\n2\t4.5\tToo good")
    with pytest.raises(ValueError, match="Line 1 has the mean rating 'good'"):
        sentiment.parse("1\tgood\tA fine film")


@pytest.mark.parametrize(
    ("task", "sentences"),
    [("movie", 10605), ("amazon", 3708), ("tweets", 4200), ("nyt", 5190)],
)
def test_every_sentence_of_a_task_is_in_one_part(task, sentences):
    parts = [sentiment.load(task, part).texts for part in sentiment.PARTS]

    assert sum(map(len, parts)) == sentences
    assert not any(set(one) & set(two) for one, two in itertools.combinations(parts, 2))


def test_unknown_tasks_and_parts_are_refused():
    with pytest.raises(ValueError, match="Unknown task 'film', expected movie, "):
        sentiment.load("film", "test")
    with pytest.raises(ValueError, match="Unknown part 'dev', expected test, "):
        sentiment.load("movie", "dev")


def test_an_empty_part_is_refused():
    with pytest.raises(
        ValueError, match="None of 1 sentences is in the buckets 3 to 3"
    ):
        sentiment.select(sentiment.parse(LINES[1]), range(3, 4))


def test_packing_keeps_every_line_and_is_reproducible(tmp_path):
    source, targets = tmp_path / "all.tsv", [tmp_path / "1.gz", tmp_path / "2.gz"]
    source.write_bytes("\r\n".join(LINES).encode())

    for target in targets:
        sentiment.pack(source, target)

    first, second = (target.read_bytes() for target in targets)
    assert first == second
    assert gzip.decompress(first).decode() == "\n".join(LINES)


def test_the_licence_ships_with_the_sentences():
    folder = pathlib.Path(sentiment.__file__).parents[1] / "assets" / "sentiment"
    assert "The MIT License" in (folder / "LICENSE.txt").read_text()
