"""Many arrays of equal shapes as a few: the factors of a program.

A model's factors come in as hundreds of arrays; a program that names each in every step
compiles and runs slowly. So they are joined, those of a shape to one array.

Traceable under `jit`.
"""

import math
from collections.abc import Sequence
from typing import Any

from jax import lax
from jaxtyping import Array

Members = Sequence[Array]
"""Factors `[*stack, m, r]` of equal `m`, `r` and dtypes, or a single stack of them."""


def join(x: Members) -> Array:
    """Return factors as one array, `[L, ...]`; a single stack as it is."""
    if len(x) == 1 and x[0].ndim > 2:
        return x[0]
    tail = x[0].shape[-2:]
    # Joined along an axis that is there: an axis more would be an operation an array.
    parts = [y if y.ndim == 2 else y.reshape(-1, tail[1]) for y in x]
    joined = lax.concatenate(parts, 0) if len(parts) > 1 else parts[0]
    return joined.reshape(-1, *tail)


def common(counts: Sequence[int], most: int) -> int:
    """Return how many of so many arrays to take at once, at most.

    A number that divides all counts but 1, if it is not too small: often that of the
    layers does, or a factor of it.
    """
    whole = math.gcd(*(x for x in counts if x > 1))
    factor = max(x for x in range(1, most + 1) if whole % x == 0)
    return factor if factor > most // 4 else most


def chunks(x: Any, most: int) -> list[Any]:
    """Return a sequence in pieces of at most `most`, all but the last of one length."""
    length = math.ceil(len(x) / math.ceil(len(x) / most))
    return [x[i : i + length] for i in range(0, len(x), length)]
