"""Sets of labelled images: CIFAR-10, CIFAR-100, EuroSAT, Flowers, Pets, Cars, Food-101.

Axis letter: `N` images. Runs on the host.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from jaxtyping import Int

from train.data import hub, sources

if TYPE_CHECKING:
    import datasets
    import PIL.Image

NAMES = tuple(x.name for x in sources.IMAGES)
"""The names of the sets."""

_EUROSAT = "eurosat"


class Images(NamedTuple):
    """Pictures and their classes.

    Attributes:
      pictures: Decoded when they are taken, one at a time.
      labels: Their classes, from 0.
      classes: The name of each class.
    """

    pictures: "Sequence[PIL.Image.Image]"
    labels: Int[np.ndarray, "N"]
    classes: tuple[str, ...]


def load(
    name: str, part: str, *, data: pathlib.Path | None = None, subset: bool = False
) -> Images:
    """Return one part of a set.

    Args:
      name: One of `NAMES`.
      part: "train", "test" or, of Flowers, "validation".
      data: A folder of data sets, see `hub`.
      subset: Whether fewer images are meant to be there than the set has.

    Raises:
      OSError: if the set is not there.
      ValueError: if there is no such set or part, or its contents are wrong.
    """
    if name not in NAMES:
        raise ValueError(f"Unknown images '{name}', expected {', '.join(NAMES)}.")
    if name != _EUROSAT:
        return _images(hub.load(name, part, data=data, subset=subset), name)
    # EuroSAT has one part on the hub that is read as a whole.
    rows = hub.load(name, "all", data=data, subset=subset)
    parts = dict(zip(("train", "test"), eurosat_split(len(rows)), strict=True))
    if part not in parts:
        raise ValueError(f"'{name}' has no part '{part}', expected train, test.")
    return _images(cast("datasets.Dataset", rows.select(parts[part])), name)


def eurosat_split(
    count: int = 27_000, seed: int = 0
) -> tuple[Int[np.ndarray, "train"], Int[np.ndarray, "test"]]:
    """Split EuroSAT: return the training images, four fifths, and the test images.

    EuroSAT has no official split. The images, in the order of the hub's parts
    train, validation and test, are sorted by the SHA-256 of "SEED INDEX"; the last
    fifth, 5,400 of 27,000, is the test part. A random generator could change
    between versions; a hash does not.

    Args:
      count: The number of images.
      seed: Another seed gives another split.
    """
    digests = [hashlib.sha256(f"{seed} {x}".encode()).digest() for x in range(count)]
    order = np.array(sorted(range(count), key=digests.__getitem__), int)
    train, test = np.split(order, [count - count // 5])
    return np.sort(train), np.sort(test)


def _images(rows: "datasets.Dataset", name: str) -> Images:
    pictures: Any = rows["image"]  # A column decodes images on access only.
    hint = "Are its labels numbers of classes, from 0?"
    return Images(pictures, *hub.labels(rows, name, hint=hint))
