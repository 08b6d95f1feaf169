"""Measure a child's error against NumPy in float64, computed through the factors."""

from typing import NamedTuple

import numpy as np


class Kept(NamedTuple):
    """One module as a method kept it: `s [k]`, `a [m, k]` and `b [k, n]`."""

    s: np.ndarray
    a: np.ndarray
    b: np.ndarray


def errors(
    a: np.ndarray, b: np.ndarray, scale: float, kept: Kept
) -> tuple[float, float]:
    """Return the errors of the kept singular values and of their product.

    The first is the largest relative error of a singular value. The second is the
    relative error, in the Frobenius norm, to the best approximation of
    `scale * a @ b` of the same rank.
    """
    s, a_ref, b_ref = truncated(a, b, scale, kept.s.size)
    difference = norm_of_product(
        np.concatenate([kept.a, -a_ref], axis=1), np.concatenate([kept.b, b_ref])
    )
    sigma = np.abs(np.asarray(kept.s, np.float64) - s) / s
    return float(sigma.max()), float(difference / np.linalg.norm(s))


def truncated(a: np.ndarray, b: np.ndarray, scale: float, k: int) -> Kept:
    """Return the best approximation of rank `k`, by QR and SVD in float64."""
    q_a, r_a = np.linalg.qr(np.asarray(a, np.float64))
    q_b, r_b = np.linalg.qr(np.asarray(b, np.float64).T)
    u, s, vt = np.linalg.svd(scale * r_a @ r_b.T)
    return Kept(s[:k], q_a @ (u[:, :k] * s[:k]), vt[:k] @ q_b.T)


def norm_of_product(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Frobenius norm of `x @ y` without forming the product.

    Triangular factors are used instead of Gram matrices: the rounding of squares would
    hide a small difference of two large products.
    """
    r_x = np.linalg.qr(np.asarray(x, np.float64), mode="r")
    r_y = np.linalg.qr(np.asarray(y, np.float64).T, mode="r")
    return float(np.linalg.norm(r_x @ r_y.T))
