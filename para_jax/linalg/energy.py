"""Energy, the sum of squared singular values, at any scale.

Squares leave the range of a dtype at the root of its ends: in float64 those of 1e-162
are zero and those of 1e155 infinite. A share of energy does not depend on the scale, so
values are brought near 1 before they are squared.

Traceable under `jit`, but for `dropped`, which runs on the host.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def near_one(s: Any, xp: Any, *, axis: int | None = None) -> Any:
    """Scale `s` by a power of two to bring the largest value near 1.

    The power keeps equal values equal, and values that vanish are too small to matter.
    Arrays with NaN or infinity, and arrays of zeros, stay as they are.

    Args:
      s: Singular values, not negative.
      xp: `numpy`, or `jax.numpy` while tracing.
      axis: The axis along which values are compared; all by default.
    """
    return s / unit(s.max(axis, keepdims=True), xp)


def unit(largest: Any, xp: Any) -> Any:
    """Return the power of two that brings the largest of some values near 1.

    Args:
      largest: The largest values, any shape; of infinity, NaN and 0 some power.
      xp: `numpy`, or `jax.numpy` while tracing.
    """
    if xp is np:
        _, exponent = np.frexp(largest)
        # 2^-1023 is subnormal.
        return np.ldexp(np.ones_like(largest), np.clip(exponent, -1022, 1022))
    # Not by frexp and ldexp, which JAX 0.12 lowers in the precision of a later moment.
    info = jnp.finfo(largest.dtype)
    power = jax.lax.reduce_precision(largest / 2, info.nexp, 0)
    return jnp.where(jnp.isfinite(power), jnp.maximum(power, info.tiny), 1)


def dropped(s: np.ndarray, kept: np.ndarray) -> float:
    """Return the share of the energy of `s` outside of `kept`, 0 to 1.

    It is 0 where there is no energy. Runs on the host.
    """
    # From what was dropped: `1 - kept` would lose all digits of a small error.
    squares = near_one(np.asarray(s, np.float64), np) ** 2
    total = float(squares.sum())
    return float(squares[~kept].sum()) / total if total else 0.0


def threshold(s: Any, candidate: Any, share: Any, xp: Any) -> Any:
    """Return the largest `tau` of each row to drop at most `share` of the energy.

    The dropped tail is summed from its small end: in float32, a sum from the large
    end never reaches the total, and epsilon = 1 would keep nothing sensible.

    Args:
      s: Singular values near 1, `[M, K]`, in any order.
      candidate: Which may be kept, `[M, K]`; the others are dropped in any case.
      share: The share of a row's energy that may be dropped.
      xp: `numpy`, or `jax.numpy` while tracing.
    """
    values = xp.sort(xp.where(candidate, s, 0), axis=-1)  # Ascending.
    squares = values * values
    excluded = xp.where(candidate, 0, s * s).sum(-1, keepdims=True)
    below = xp.cumsum(squares, axis=-1)[:, :-1]
    lost = excluded + xp.concatenate([xp.zeros_like(excluded), below], axis=-1)
    allowed = share * (squares.sum(-1, keepdims=True) + excluded)
    # Both sides are sums of roundings: equality has to count as "at most".
    allowed = allowed * (1 + 8 * float(np.finfo(s.dtype).eps))
    reached = xp.where(lost <= allowed, values, 0)
    return reached.max(-1)
