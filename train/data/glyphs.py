"""Pictures of thousands of characters in hundreds of fonts, to pretrain an encoder on.

The pictures hold out everything that the encoder is later adapted to: all digits and
other numbers, all letters of two scripts, and the faces of some twenty families. They
also leave out Unicode's compatibility forms of such characters: a digit in a circle, a
letter of double width.

    python -m train.data.glyphs --out out/glyphs.npz

Axis letters: `N` pictures, `S` pixels. Runs on the host.
"""

import argparse
import collections
import itertools
import pathlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Int, UInt8

from train.data import fonts, sentiment

SCRIPTS_HELD_OUT = ("ARMENIAN", "GEORGIAN")
"""Scripts by the beginning of their characters' names in Unicode."""

FAMILIES_HELD_OUT = (
    "Andika",
    "Averia Sans",
    "BPG",  # Georgian fonts: some draw Georgian letters in the place of Latin ones.
    "Because We",
    "Breip",
    "CMU Bright",
    "CMU Typewriter",
    "Charis SIL",
    "Comic Neue",
    "EB Garamond",
    "FreeMono",
    "Isabella",
    "Lato",
    "Linux Libertine",
    "NanumMyeongjo",
    "Old Standard",
    "Open Sans",
    "PT ",
    "Quattrocento",
)
"""Families by the beginning of their names."""

LEAST, MOST = 4, 28
"""The smallest and the largest number of pictures of a class."""

_DIGITS = frozenset("0123456789")
_LETTERS = frozenset({"Ll", "Lu", "Lt", "Lo", "Sm", "Sc"})
_SYMBOLS = range(0x2190, 0x27C0)  # Arrows, technical signs, boxes, shapes, dingbats.
# Of these scripts, which would be four classes of five, one character in 25.
_LARGE = ("CJK UNIFIED", "HANGUL SYLLABLE")


class Glyphs(NamedTuple):
    """Pictures, white on black, and their characters.

    Attributes:
      images: The pictures.
      labels: The class of each picture.
      faces: The face of each picture.
      classes: The characters of each class; look-alikes share one.
      names: The names of the faces, as in `DejaVu Sans/Bold: its licence`.
    """

    images: UInt8[np.ndarray, "N S S"]
    labels: Int[np.ndarray, "N"]
    faces: Int[np.ndarray, "N"]
    classes: tuple[str, ...]
    names: tuple[str, ...]


def is_seen(character: str) -> bool:
    """Test whether `character` belongs to the pretraining."""
    kind = unicodedata.category(character)
    name = unicodedata.name(character, "")
    return (
        (kind in _LETTERS or (kind == "So" and ord(character) in _SYMBOLS))
        and unicodedata.normalize("NFKC", character) == character
        and not name.startswith(SCRIPTS_HELD_OUT)
        and not (name.startswith(_LARGE) and sentiment.bucket(character) >= 4)
    )


def is_seen_face(face: fonts.Face) -> bool:
    """Test whether `face` belongs to the pretraining."""
    return not face.family.startswith(FAMILIES_HELD_OUT)


def collect(
    faces: Sequence[fonts.Face], *, least: int = LEAST, most: int = MOST
) -> Glyphs:
    """Draw the pictures for pretraining, `least` to `most` of each class.

    Characters that look alike in at least half of the faces with both, such as
    Latin, Greek and Cyrillic A, are one class, and look-alikes of digits are left
    out. The pictures of a class are distinct; if there are too many, a hash of the
    faces' names chooses.

    Raises:
      ValueError: if no class has `least` pictures.
    """
    faces = [face for face in faces if is_seen_face(face)]
    drawn = [
        {x: picture.tobytes() for x, picture in fonts.draw(face, _drawn(face)).items()}
        # Bytes, so that equal pictures are equal keys.
        for face in faces
    ]
    classes = {}
    for characters in _lookalikes(drawn):
        rows = _rows(characters, drawn, [face.name for face in faces])
        # Look-alikes of digits are held out with them.
        if len(rows) >= least and not set(characters) & _DIGITS:
            # Rows are in the order of a hash: cutting them is an unbiased sample.
            classes[characters] = rows[:most]
    if not classes:
        raise ValueError(
            f"No character has {least} pictures in {len(faces)} faces. More fonts: "
            f"apt-get install {fonts.PACKAGES}"
        )
    pictures, shown = zip(*itertools.chain(*classes.values()), strict=True)
    counts = [len(rows) for rows in classes.values()]
    return Glyphs(
        images=np.frombuffer(b"".join(pictures), np.uint8).reshape(
            -1, fonts.SIZE, fonts.SIZE
        ),
        labels=np.repeat(np.arange(len(classes), dtype=np.int32), counts),
        faces=np.array(shown, np.int32),
        classes=tuple(classes),
        names=tuple(f"{face.name}: {face.licence}" for face in faces),
    )


def save(glyphs: Glyphs, path: pathlib.Path) -> None:
    """Write `glyphs` to a compressed .npz file. Inverse: `load`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **glyphs._asdict())


def load(path: pathlib.Path) -> Glyphs:
    """Load the glyphs. Inverse: `save`.

    Raises:
      FileNotFoundError: if there is no such file; the message says how to make one.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No pictures in '{path}'. To draw them: python -m train.data.glyphs --out "
            f"{path}, after: apt-get install {fonts.PACKAGES}"
        )
    with np.load(path) as file:
        arrays = {name: file[name] for name in Glyphs._fields}
    for name in ("classes", "names"):
        arrays[name] = tuple(map(str, arrays[name]))
    return Glyphs(**arrays)


def _drawn(face: fonts.Face) -> list[str]:
    """Return visible characters, and digits, to find letters with the same picture."""
    return sorted(x for x in face.characters if is_seen(x) or x in _DIGITS)


def _lookalikes(drawn: Iterable[dict[str, bytes]]) -> list[str]:
    """Group the characters by equal pictures; each group is sorted."""
    drawn_by = collections.defaultdict(set)
    alike: collections.Counter[tuple[str, str]] = collections.Counter()
    for number, pictures in enumerate(drawn):
        same = collections.defaultdict(list)
        for character, picture in pictures.items():
            drawn_by[character].add(number)
            same[picture].append(character)
        for characters in same.values():
            alike.update(itertools.combinations(sorted(characters), 2))
    pairs = [
        (one, two)
        for (one, two), count in alike.items()
        # Alike in at least half of the faces with both.
        if 2 * count >= len(drawn_by[one] & drawn_by[two])
    ]
    return _groups(sorted(drawn_by), pairs)


def _groups(characters: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[str]:
    index = {character: i for i, character in enumerate(characters)}
    edges = np.array([[index[x] for x in pair] for pair in pairs], int).reshape(-1, 2)
    size = len(characters)
    matrix = scipy.sparse.coo_array((np.ones(len(edges)), edges.T), shape=(size, size))
    # Look-alikes are transitive: classes are connected components.
    count, label = scipy.sparse.csgraph.connected_components(matrix, directed=False)
    groups = [""] * count
    for character, group in zip(characters, label, strict=True):
        groups[group] += character
    return sorted(groups)


def _rows(
    characters: str, drawn: Sequence[dict[str, bytes]], names: Sequence[str]
) -> list[tuple[bytes, int]]:
    """Return the distinct pictures of a class and their faces, ordered by a hash."""
    pairs = {
        pictures[x]: number
        for number, pictures in enumerate(drawn)
        for x in characters
        if x in pictures
    }
    return sorted(
        pairs.items(), key=lambda x: sentiment.bucket(names[x[1]] + characters)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures with the fonts of this machine, and summarise them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=pathlib.Path, default="out/glyphs.npz")
    out = parser.parse_args(arguments).out
    glyphs = collect(fonts.find(fonts.folders()))
    save(glyphs, out)
    print(
        f"{len(glyphs.images)} pictures of {len(glyphs.classes)} classes "
        f"({sum(map(len, glyphs.classes))} characters) in {len(glyphs.names)} faces: "
        f"{glyphs.images.nbytes / 1e6:.0f} MB, {out.stat().st_size / 1e6:.1f} MB in "
        f"{out}. Held out: {', '.join(SCRIPTS_HELD_OUT)}, all numbers, and "
        f"{len(FAMILIES_HELD_OUT)} families."
    )


if __name__ == "__main__":
    main()
