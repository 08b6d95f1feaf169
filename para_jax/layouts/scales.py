"""Resolve the scale of each pair: the factor in `delta = scale * a @ b`.

Runs on the host: a scale is a Python number, so it is static under `jit`.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from para_jax._adapters.messages import ALPHA_OR_SCALE, Argument, Message
from para_jax.layouts.layout import Layout, Leaves
from para_jax.layouts.pairs import Pair


def of_pairs(
    layout: Layout,
    found: tuple[Pair, ...],
    leaves: Leaves,
    alpha: float | Mapping[str, float] | None,
    scale: float | None,
) -> dict[str, float]:
    """Return the scale of each pair by its path.

    Args:
      layout: Says whether the library has an alpha, and its place.
      found: The pairs.
      leaves: The tree, which may hold alpha.
      alpha: The user's alpha; one number, or one per pair by path.
      scale: The user's scale, instead of `alpha`.

    Raises:
      ValueError: if the scale is not known, given twice, or not a finite number.
    """
    _check_arguments(alpha, scale)
    given = alpha is not None or scale is not None
    if not layout.alpha:
        if given:
            raise ValueError(
                f"{layout.name} has no alpha: a @ b is the update. Leave out "
                f"{'scale' if alpha is None else 'alpha'}."
            )
        return {pair.path: 1.0 for pair in found}
    inside = [pair for pair in found if pair.alpha or pair.scale is not None]
    if inside and given:
        name = "alpha" if inside[0].alpha else "scale"
        raise ValueError(f"'{inside[0].path}' holds its own {name}. Leave it out.")
    scales = {x.path: _scale(layout, x, leaves, alpha, scale) for x in found}
    if isinstance(alpha, Mapping):
        _check_names(alpha, scales)
    return scales


def _check_names(alpha: Mapping[str, float], scales: Mapping[str, float]) -> None:
    # A misspelt path must not pass unnoticed beside the right ones.
    if unknown := sorted(alpha.keys() - scales.keys()):
        raise ValueError(
            Message(
                Argument("alpha"),
                f" names '{unknown[0]}', expected one of {list(scales)[:3]}, ...",
            )
        )


def _check_arguments(
    alpha: float | Mapping[str, float] | None, scale: float | None
) -> None:
    """Raise ValueError unless at most one argument is given, of finite numbers."""
    for name, value in (("alpha", alpha), ("scale", scale)):
        for one in value.values() if isinstance(value, Mapping) else [value]:
            if one is not None and not _is_finite(one):
                raise ValueError(
                    Message(Argument(name, value), ": expected a finite number.")
                )
    if alpha is not None and scale is not None:
        raise ValueError(Message("Give ", ALPHA_OR_SCALE, ", not both."))


def _scale(
    layout: Layout,
    pair: Pair,
    leaves: Leaves,
    alpha: float | Mapping[str, float] | None,
    scale: float | None,
) -> float:
    # A pair of rank 0 has no update, whatever its scale: any finite number serves.
    if pair.scale is not None:
        return pair.scale
    if pair.alpha:
        return _number(pair, leaves[pair.alpha]) / max(pair.rank, 1)
    if scale is not None:
        return float(scale)
    one = alpha.get(pair.path) if isinstance(alpha, Mapping) else alpha
    if one is None:
        raise ValueError(
            Message(
                f"'{pair.path}': the layout {layout.name} does not record the scale of "
                "a @ b. Give ",
                layout.alpha,
                ".",
            )
        )
    return float(one) / max(pair.rank, 1)


def _number(pair: Pair, leaf: Any) -> float:
    """Return the alpha in a leaf: a Python number, or an array of one."""
    value = np.asarray(leaf)
    # The kind "V" is that of bfloat16, which NumPy does not count as floating point.
    if value.size != 1 or value.dtype.kind not in "iufV" or not np.isfinite(value):
        raise ValueError(
            f"'{'/'.join(pair.alpha)}' is {leaf!r}: expected one finite number, the "
            f"alpha of '{pair.path}'."
        )
    return float(value.item())


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)
