"""Energy, the sum of squared singular values, at any scale. Traced and host.

Squares leave the range of a dtype at the root of its ends: in float64 those of 1e-162
are zero and those of 1e155 infinite. A share of energy does not depend on the scale, so
values are brought near 1 before they are squared.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def near_one(s: Any, xp: Any, *, axis: int | None = None) -> Any:
    """Return `s` times a power of two that brings the largest value near 1.

    Which values are equal does not change, and values that vanish are too small to
    matter. Arrays that are not finite, or zero, stay as they are.

    Args:
      s: Singular values, not negative.
      xp: `numpy`, or `jax.numpy` while tracing.
      axis: The axis along which values are compared; all by default.
    """
    largest = s.max(axis, keepdims=True)
    if xp is np:
        _, exponent = np.frexp(largest)
        return np.ldexp(s, np.clip(-exponent, -1022, 1022))  # 2^-1023 is subnormal.
    # Not by frexp and ldexp, which JAX 0.12 lowers in the precision of a later moment.
    info = jnp.finfo(s.dtype)
    power = jax.lax.reduce_precision(largest / 2, info.nexp, 0)
    power = jnp.where(jnp.isfinite(power), jnp.maximum(power, info.tiny), 1)
    return s / power


def dropped(s: np.ndarray, kept: np.ndarray) -> float:
    """Return the share of the energy of `s` that is not `kept`, 0 to 1. Host.

    It is 0 where there is no energy.
    """
    squares = near_one(np.asarray(s, np.float64), np) ** 2
    total = float(squares.sum())
    return float(squares[~kept].sum()) / total if total else 0.0
