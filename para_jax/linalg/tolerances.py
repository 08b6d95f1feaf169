"""The rules of rounding: for zeros, for noise, and for signs.

One text serves both back ends, NumPy and traced: the rules are arithmetic on arrays of
either kind. Traceable under `jit`.
"""

from typing import Any

import numpy as np

RESOLUTION = float(np.finfo(np.float32).eps)
"""The resolution of float32 factors, relative to the largest, per column."""

ROUNDINGS = 8
"""Bound on the error of a product in float64, in roundings of its parts' norms.

Where parts cancel, 4.1 were seen, of 6 columns of length 16,384 through LAPACK's QR;
less at higher ranks. float32 gets a single rounding instead: there, genuine values of
graded factors are as small as eight.
"""

SIGNING = 512
"""Number of leading entries of a new row of `b` that settle its sign.

The largest of them in magnitude becomes positive; of equal ones, the first.
"""


def floor(top: Any, rank: Any) -> Any:
    """Return the largest value to count as zero: `r * eps * s_1`.

    With float32's eps, which is the resolution of float32 factors. The usual
    `max(m, n) * eps` would drop genuine values of graded factors.

    Args:
      top: The largest singular value of the module, or of each component's module.
      rank: The rank `r` of its factors: a number, or an array in the dtype of `top`.
    """
    return rank * RESOLUTION * top


def cancelled(s: Any, norms: Any, *, least: int = 1) -> Any:
    """Return whether singular values are noise, as the parts of the product cancel.

    Rounding is relative to the sum of the parts' norms, which may be far more than the
    largest singular value.

    Args:
      s: Singular values, `[..., r]`, descending.
      norms: The sum over the `r` parts of a product, a column of `a` times a row of
        `b` each, of the product of their norms, `[..., 1]`.
      least: The least number of roundings to allow for.
    """
    # In float64 there is room between rounding and the values of float32 factors.
    is_wide = norms.dtype == np.float64
    roundings = max(least, ROUNDINGS if is_wide else 1)
    noise = roundings * float(np.finfo(norms.dtype).eps) * norms
    # Values below the floor count as zero by that rule alone.
    return (s <= noise) & (noise > floor(s[..., :1], s.shape[-1]))
