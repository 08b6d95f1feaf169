"""Memory for the tensors of a file, in few large pieces. Runs on the host."""

from collections.abc import Iterator, Sequence

import numpy as np

_PIECE = 2**24  # Bytes
_ALIGNED = 64  # The longest line of a cache, and vector of a processor.


def rooms(sizes: Sequence[int], own: Sequence[bool]) -> Iterator[np.ndarray]:
    """Yield uninitialised memory for each tensor, in order, as `uint8[size]`.

    From 4 MiB on, NumPy asks the system for huge pages: to have a large adapter in many
    small pieces takes longer than to read it.

    Args:
      sizes: The bytes of each tensor.
      own: Whether a tensor shall not share its piece, which lives as long as any part
        of it.
    """
    taken = [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
    left = sum(x for x, alone in zip(taken, own, strict=True) if not alone)
    piece = np.empty(0, np.uint8)
    for size, part, alone in zip(sizes, taken, own, strict=True):
        if alone:
            yield np.empty(size, np.uint8)
            continue
        if piece.size < part:
            piece = np.empty(max(part, min(left, _PIECE)), np.uint8)
        yield piece[:size]
        piece, left = piece[part:], left - part
