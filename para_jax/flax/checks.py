"""Check by path and by shapes that an adapter belongs to a model.

Runs on the host: shapes are static, so the checks also run while a model is traced.
"""

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
    """Check that factors of shapes `a`, `b` fit a stack of kernels `[m, n]`.

    Raises:
      ValueError: if not. The message names the path, both shapes and the expected ones.
    """
    if a[:-1] != (*stack, m) or b != (*stack, a[-1], n):
        lead = "".join(f"{size}, " for size in stack)
        raise ValueError(
            f"The adapter '{path}' does not fit its layer: a, b have shapes {a}, {b}; "
            f"expected [{lead}{m}, r], [{lead}r, {n}]. Was it trained on this layer?"
        )


def unknown(path: str, layers: Iterable[str]) -> ValueError:
    """Return the error for a path without a layer; it names the most similar layers."""
    return ValueError(
        f"The adapter '{path}' belongs to no layer of the model, which has "
        f"{nearest(path, layers)}, ... Rename it."
    )


def nearest(path: str, layers: Iterable[str]) -> list[str]:
    """Return up to three of `layers`, the most similar to `path` first."""
    # No cutoff: an error should show some names, however unlike the path is.
    return difflib.get_close_matches(path, sorted(layers), n=3, cutoff=0)
