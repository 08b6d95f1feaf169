"""What the product of two stored factors is multiplied with. Host."""

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
    """Returns what `a @ b` of each pair is multiplied with, by its path.

    Args:
      layout: Says whether the library has an alpha, and where it is.
      found: The pairs.
      leaves: The tree, which may hold alpha.
      alpha: What the user says; one number, or one a pair by path.
      scale: Or that.

    Raises:
      ValueError: if it is not known, said twice, or no finite number.
    """
    given = alpha is not None or scale is not None
    for name, value in (("alpha", alpha), ("scale", scale)):
        for one in value.values() if isinstance(value, Mapping) else [value]:
            if one is not None and not _is_finite(one):
                raise ValueError(
                    Message(Argument(name, value), ": expected a finite number.")
                )
    if alpha is not None and scale is not None:
        raise ValueError(Message("Give ", ALPHA_OR_SCALE, ", not both."))
    if not layout.alpha:
        if given:
            raise ValueError(
                f"{layout.name} has no alpha: a @ b is the update. Leave out "
                f"{'scale' if alpha is None else 'alpha'}."
            )
        return {pair.path: 1.0 for pair in found}
    inside = [pair for pair in found if pair.alpha]
    if inside and given:
        raise ValueError(f"'{inside[0].path}' holds its own alpha. Leave it out.")
    scales = {x.path: _scale(layout, x, leaves, alpha, scale) for x in found}
    if isinstance(alpha, Mapping) and (unknown := sorted(alpha.keys() - scales.keys())):
        raise ValueError(
            Message(
                Argument("alpha"),
                f" names '{unknown[0]}', expected one of {list(scales)[:3]}, ...",
            )
        )
    return scales


def _scale(
    layout: Layout,
    pair: Pair,
    leaves: Leaves,
    alpha: float | Mapping[str, float] | None,
    scale: float | None,
) -> float:
    if pair.alpha:
        return _number(pair, leaves[pair.alpha]) / max(pair.rank, 1)
    if scale is not None:
        return float(scale)
    one = alpha.get(pair.path) if isinstance(alpha, Mapping) else alpha
    if one is None:
        raise ValueError(
            Message(
                f"'{pair.path}': the layout {layout.name} does not say what a @ b is "
                "multiplied with. Give ",
                layout.alpha,
                ".",
            )
        )
    return float(one) / max(pair.rank, 1)


def _number(pair: Pair, leaf: Any) -> float:
    """Return the alpha in a leaf: a Python number, or an array of one."""
    value = np.asarray(leaf)
    if value.size != 1 or value.dtype.kind not in "iufV" or not np.isfinite(value):
        raise ValueError(
            f"'{'/'.join(pair.alpha)}' is {leaf!r}: expected one finite number, the "
            f"alpha of '{pair.path}'."
        )
    return float(value.item())


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)
