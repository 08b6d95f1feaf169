"""Three-way sentiment of movie review sentences, rated by people.

C.J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text", ICWSM 2014, give each sentence the mean of about 20
ratings in [-4, 4]. A sentence belongs to the test part by the hash of its text, so
that the split depends on no order and no seed. Host code.
"""

import gzip
import hashlib
import pathlib
from typing import NamedTuple

CLASSES = ("negative", "neutral", "positive")
TEST = range(20)
"""The buckets, of 100, whose sentences are the test part."""

_ASSETS = pathlib.Path(__file__).parent.parent / "assets"
_TEST_FILE = _ASSETS / "movie" / "test.tsv.gz"


class Sentences(NamedTuple):
    """Texts and their labels, which index `CLASSES`."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


def bucket(text: str) -> int:
    """Returns the sentence's bucket, 0 to 99, by which the data is split."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100


def label(rating: float) -> int:
    """Returns the class of a mean rating: neutral from -0.5 to 0.5, both included."""
    return 0 if rating < -0.5 else 2 if rating > 0.5 else 1


def parse(tsv: str) -> Sentences:
    """Returns the sentences of a file of the VADER data: id, mean rating, text.

    Raises:
      ValueError: if a line has not three fields.
    """
    rows = [line.split("\t") for line in tsv.split("\n") if line]
    for number, row in enumerate(rows, 1):
        if len(row) != 3:
            raise ValueError(
                f"Line {number} has {len(row)} fields separated by tabs, expected 3: "
                "id, mean rating, text."
            )
    return Sentences(
        texts=tuple(text for _, _, text in rows),
        labels=tuple(label(float(rating)) for _, rating, _ in rows),
    )


def load_test() -> Sentences:
    """Returns the test part, which ships with this package."""
    return parse(gzip.decompress(_TEST_FILE.read_bytes()).decode())


def pack_test(source: pathlib.Path, target: pathlib.Path = _TEST_FILE) -> None:
    """Writes the test part of the original file `source`, compressed, to `target`.

    The same source gives the same bytes: the header holds no time and no file name.
    """
    lines = source.read_bytes().decode().split("\r\n")
    kept = [x for x in lines if x and bucket(x.split("\t")[2]) in TEST]
    data = "".join(f"{line}\n" for line in kept).encode()
    with (
        target.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as packed,
    ):
        packed.write(data)
