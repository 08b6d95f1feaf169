"""Whether an adapter belongs to a model: by its path and by its shapes. Host."""

import difflib
from collections.abc import Iterable


def check(
    path: str,
    a: tuple[int, ...],
    b: tuple[int, ...],
    *,
    m: int,
    n: int,
    stack: tuple[int, ...] = (),
) -> None:
    """Raises ValueError unless factors of shapes `a`, `b` fit `stack` kernels `[m, n]`.

    The message names the path, both shapes and the expected ones.
    """
    if a[:-1] != (*stack, m) or b != (*stack, a[-1], n):
        lead = "".join(f"{size}, " for size in stack)
        raise ValueError(
            f"The adapter '{path}' does not fit its layer: a, b have shapes {a}, {b}; "
            f"expected [{lead}{m}, r], [{lead}r, {n}]. Was it trained on this layer?"
        )


def unknown(path: str, layers: Iterable[str]) -> ValueError:
    """Returns the error of a path without a layer. It names the layers most like it."""
    return ValueError(
        f"The adapter '{path}' belongs to no layer of the model, which has "
        f"{nearest(path, layers)}, ... Rename it."
    )


def nearest(path: str, layers: Iterable[str]) -> list[str]:
    """Returns up to three of `layers`, those most like `path` first."""
    return difflib.get_close_matches(path, sorted(layers), n=3, cutoff=0)
