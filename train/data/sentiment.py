"""Three-way sentiment of four kinds of sentences, rated by people.

C.J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text", ICWSM 2014, give each sentence the mean of about 20
ratings in [-4, 4]. A sentence belongs to a part by the hash of its text, so that the
split depends on no order and no seed. Runs on the host.
"""

import gzip
import hashlib
import math
import pathlib
from typing import NamedTuple

CLASSES = ("negative", "neutral", "positive")

TASKS = ("movie", "amazon", "tweets", "nyt")
"""Film reviews, product reviews, tweets, editorials of the New York Times."""

PARTS = {"test": range(20), "validation": range(20, 30), "train": range(30, 100)}
"""The buckets, of 100, of each part."""

_ASSETS = pathlib.Path(__file__).parent.parent / "assets" / "sentiment"


class Sentences(NamedTuple):
    """Texts and their labels, indices into `CLASSES`."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


def bucket(text: str) -> int:
    """Return the sentence's bucket, 0 to 99, for the split."""
    # Python's own `hash` differs between processes.
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100


def label(rating: float) -> int:
    """Return the class of a mean rating: neutral from -0.5 to 0.5, both included.

    Raises:
      ValueError: if it is not a rating.
    """
    if not -4 <= rating <= 4:  # Nor is NaN.
        raise ValueError(f"A mean rating is {rating:g}, expected -4 to 4.")
    return 0 if rating < -0.5 else 2 if rating > 0.5 else 1


def parse(tsv: str) -> Sentences:
    """Parse a file of the VADER data: id, mean rating, text.

    Raises:
      ValueError: if a line has not three fields, or its rating is none.
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
        labels=tuple(_label(n, rating) for n, (_, rating, _) in enumerate(rows, 1)),
    )


def load(task: str, part: str) -> Sentences:
    """Return one part of one task; all of them ship with this package.

    Args:
      task: One of `TASKS`.
      part: One of `PARTS`.

    Raises:
      ValueError: if there is no such task or part.
    """
    for what, got, known in (("task", task, TASKS), ("part", part, PARTS)):
        if got not in known:
            raise ValueError(f"Unknown {what} '{got}', expected {', '.join(known)}.")
    packed = (_ASSETS / f"{task}.tsv.gz").read_bytes()
    return select(parse(gzip.decompress(packed).decode()), PARTS[part])


def select(sentences: Sentences, buckets: range) -> Sentences:
    """Return the sentences in `buckets`.

    Raises:
      ValueError: if there are none.
    """
    pairs = zip(sentences.texts, sentences.labels, strict=True)
    kept = [(text, name) for text, name in pairs if bucket(text) in buckets]
    if not kept:
        raise ValueError(
            f"None of {len(sentences.texts)} sentences is in the buckets "
            f"{buckets.start} to {buckets.stop - 1}: the part is empty."
        )
    texts, labels = zip(*kept, strict=True)
    return Sentences(texts, labels)


def pack(source: pathlib.Path, target: pathlib.Path) -> None:
    """Compress the original file `source` to `target`.

    The same source gives the same bytes: the header holds no time and no file name.
    """
    data = source.read_bytes().replace(b"\r\n", b"\n")
    with (
        target.open("wb") as file,
        # Without name and time: equal contents give equal files.
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as packed,
    ):
        packed.write(data)


def _label(number: int, rating: str) -> int:
    try:
        value = float(rating)
    except ValueError:
        value = math.nan
    try:
        return label(value)
    except ValueError:
        raise ValueError(
            f"Line {number} has the mean rating '{rating}', expected -4 to 4."
        ) from None
