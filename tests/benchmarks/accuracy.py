"""How far a child is from the truth: NumPy in float64, through the factors."""

from typing import NamedTuple

import numpy as np


class Kept(NamedTuple):
    """What a method kept of one module: `s [k]`, `a [m, k]` and `b [k, n]`."""

    s: np.ndarray
    a: np.ndarray
    b: np.ndarray


def errors(
    a: np.ndarray, b: np.ndarray, scale: float, kept: Kept
) -> tuple[float, float]:
    """Returns the errors of the kept singular values and of their product.

    The first is the largest relative one; the second is relative in the Frobenius
    norm, to the best approximation of `scale * a @ b` of the same rank.
    """
    s, a_ref, b_ref = truncated(a, b, scale, kept.s.size)
    difference = norm_of_product(
        np.concatenate([kept.a, -a_ref], axis=1), np.concatenate([kept.b, b_ref])
    )
    sigma = np.abs(np.asarray(kept.s, np.float64) - s) / s
    return float(sigma.max()), float(difference / np.linalg.norm(s))


def truncated(a: np.ndarray, b: np.ndarray, scale: float, k: int) -> Kept:
    """Returns the best approximation of rank `k`, by QR and SVD in float64."""
    q_a, r_a = np.linalg.qr(np.asarray(a, np.float64))
    q_b, r_b = np.linalg.qr(np.asarray(b, np.float64).T)
    u, s, vt = np.linalg.svd(scale * r_a @ r_b.T)
    return Kept(s[:k], q_a @ (u[:, :k] * s[:k]), vt[:k] @ q_b.T)


def norm_of_product(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the Frobenius norm of `x @ y`, which is never formed.

    Triangular factors, not Gram matrices, which would hide a small difference of two
    large products under the rounding of their squares.
    """
    r_x = np.linalg.qr(np.asarray(x, np.float64), mode="r")
    r_y = np.linalg.qr(np.asarray(y, np.float64).T, mode="r")
    return float(np.linalg.norm(r_x @ r_y.T))
