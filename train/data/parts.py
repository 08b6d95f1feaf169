"""Examples held out of a training part, for the choice of the learning rate.

The paper's sets have a training and a test part; of GLUE, the development part is the
test, as in the paper. The validation part is therefore cut from the training part. Axis
letter: `N` examples. Runs on the host.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np
from jaxtyping import Int

LARGEST = 2000
"""Held-out examples, at most; otherwise a tenth."""

T = TypeVar("T")


def held_out(
    count: int, seed: int = 0
) -> tuple[Int[np.ndarray, "train"], Int[np.ndarray, "validation"]]:
    """Split the examples into a training and a validation part.

    They are sorted by the SHA-256 of "validation SEED INDEX", and the last tenth is
    held out, `LARGEST` at most. A random generator could change between versions; a
    hash does not.

    Args:
      count: The number of examples.
      seed: Another seed holds out others.
    """
    digests = [
        hashlib.sha256(f"validation {seed} {x}".encode()).digest() for x in range(count)
    ]
    order = np.array(sorted(range(count), key=digests.__getitem__), int)
    train, validation = np.split(order, [count - min(-(-count // 10), LARGEST)])
    return np.sort(train), np.sort(validation)


def spread(rows: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " some"]:
    """Return at most `count` of the rows, at even distances.

    Not the first ones: a file may have one set of questions after the other.
    """
    places = np.linspace(0, len(rows) - 1, min(count, len(rows)))
    return rows[places.round().astype(int)]


class Some(Sequence[T]):
    """Some items of a sequence, each taken on demand."""

    def __init__(self, items: Sequence[T], rows: Int[np.ndarray, " N"]) -> None:
        self._items, self._rows = items, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Some[T]": ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Some(self._items, self._rows[index])
        return self._items[int(self._rows[index])]
