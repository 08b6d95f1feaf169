"""Build adapters on which careless numerics fail, in float64 NumPy, then rounded.

A case is a small model, by name. Nearly all share one structure, so a program compiled
for one case also runs the others. Axis letters are as in the package.
"""

import functools
import math
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from para_jax._adapters.adapter import Adapter

R = 8
LARGE, TINY = 1e30, 1e-30
SUBNORMAL = 1e-40  # float32 keeps 17 of its bits.

Pair = tuple[np.ndarray, np.ndarray]
Factors = Callable[[np.random.Generator, int, int, int], Pair]


def cases() -> dict[str, dict[str, Adapter]]:
    """Return every case; repeated calls give the same ones."""
    made = {name: _model(factors) for name, factors in _FACTORS.items()}
    return made | _ACROSS_MODULES | {"shapes": _SHAPES, "storage": _STORAGE}


def _model(
    factors: Factors,
    *,
    shapes: Mapping[str, tuple[int, ...]] = {"x": (2, 23, 17, R), "y": (13, 29, R)},
    dtype: type = np.float32,
) -> dict[str, Adapter]:
    """Return one module per shape `(*stack, m, n, r)`, all made by `factors`."""
    rng = np.random.default_rng(len(shapes))
    result = {}
    for path, (*stack, m, n, r) in shapes.items():
        pairs = [factors(rng, m, n, r) for _ in range(math.prod(stack))]
        a, b = (np.stack(x).astype(dtype) for x in zip(*pairs, strict=True))
        a, b = (x.reshape(*stack, *x.shape[1:]) for x in (a, b))
        result[path] = Adapter(a=a, b=b)
    return result


def _normal(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
    return rng.normal(size=(m, r)), rng.normal(size=(r, n))


def _orthonormal(rng: np.random.Generator, m: int, r: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(m, r)))[0]


def _with_values(sigma: np.ndarray) -> Factors:
    """Return factors of a product with these singular values, up to rounding."""

    def factors(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
        a, b = _orthonormal(rng, m, r), _orthonormal(rng, n, r).T
        return a * sigma, b

    return factors


def _rotated(sigma: np.ndarray) -> Factors:
    """Mix the columns of the same factors: no column scaling undoes the grading."""

    def factors(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
        a, b = _with_values(sigma)(rng, m, n, r)
        rotation = _orthonormal(rng, r, r)
        return a @ rotation, rotation.T @ b

    return factors


def _scaled(of_a: float | np.ndarray, of_b: float | np.ndarray) -> Factors:
    """Return random factors with scaled columns of `a` and rows of `b`."""

    def factors(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
        a, b = _normal(rng, m, n, r)
        return a * of_a, b * (np.ones(r) * of_b)[:, None]

    return factors


def _graded_rows(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
    a, b = _normal(rng, m, n, r)
    return a * np.geomspace(1, 1e-12, m)[:, None], b * np.geomspace(1e-12, 1, n)


def _identical(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
    """Make all singular values exactly equal, from signs and powers of two alone."""
    a, b = np.zeros((m, r)), np.zeros((r, n))
    a[:r], b[:, -r:] = _HADAMARD, 2 * np.eye(r)
    return a, b


def _nearly_parallel(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
    a, b = _normal(rng, m, n, r)
    return a[:, :1] + 1e-5 * a, b


def _duplicate_columns(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
    a, b = _normal(rng, m, n, r)
    a[:, r // 2 :] = a[:, : r // 2]
    return a, b


def _duplicate_everywhere(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
    a, b = _normal(rng, m, n, r)
    a[:, 1::2], b[2:5] = a[:, ::2], b[:1]
    return a, b


def _zero_columns(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
    a, b = _normal(rng, m, n, r)
    a[:, 1::3], b[2::3] = 0, 0
    return a, b


def _all_equal(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
    return np.full((m, r), 0.1), np.full((r, n), 0.3)


def _zero(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
    """Return an adapter before its first step."""
    return rng.normal(size=(m, r)), np.zeros((r, n))


def _outlier(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
    a, b = _normal(rng, m, n, r)
    a[3, 1] = 1e6
    return a, b


def _cancelling(left: float) -> Factors:
    """Return `[x, left z - x]` and `[y; y]`: their product is `left z y`."""

    def factors(rng: np.random.Generator, m: int, n: int, r: int) -> Pair:
        a, b = _normal(rng, m, n, r)
        half = r // 2
        # Round before adding: rounding for storage must not alter the remainder.
        x = a[:, :half].astype(np.float32).astype(np.float64)
        a[:, :half], a[:, half:] = x, left * a[:, half:] - x
        b[half:] = b[:half]
        return a, b

    return factors


_HADAMARD = functools.reduce(np.kron, 3 * [np.array([[1, 1], [1, -1]])])
_GRADES = np.geomspace(1, 1e-12, R)
_CLUSTERS = np.repeat([1.0, 0.1], R // 2)

_FACTORS: dict[str, Factors] = {
    "ordinary": _normal,
    "graded/a": _scaled(_GRADES, 1),
    "graded/b": _scaled(1, _GRADES),
    "graded/both": _scaled(_GRADES, _GRADES),
    "graded/rising": _scaled(_GRADES[::-1], 1),
    "graded/opposed": _scaled(_GRADES, _GRADES[::-1]),
    "graded/rotated": _rotated(_GRADES),
    "graded/rows": _graded_rows,
    "clustered": _rotated(_CLUSTERS * (1 + 1e-6 * np.arange(R))),
    "clustered/tighter": _rotated(_CLUSTERS * (1 + 1e-9 * np.arange(R))),
    "repeated": _identical,
    "repeated/rotated": _rotated(np.ones(R)),
    "parallel": _nearly_parallel,
    "deficient/a": _duplicate_columns,
    "deficient/both": _duplicate_everywhere,
    "deficient/zeros": _zero_columns,
    "deficient/one": _all_equal,
    "zero": _zero,
    "outlier": _outlier,
    "cancelling/1e-3": _cancelling(1e-3),
    "cancelling/1e-6": _cancelling(1e-6),
    "range/large": _scaled(LARGE, 1),
    "range/tiny": _scaled(1, TINY),
    "range/large-and-tiny": _scaled(TINY, LARGE),
    "range/above": _scaled(LARGE, LARGE),
    "range/below": _scaled(TINY, TINY),
    "range/graded": _scaled(LARGE * _GRADES, TINY),
    "range/subnormal": _scaled(SUBNORMAL, 1),
    "range/subnormal-and-large": _scaled(SUBNORMAL, 1e36),
}

_PLAIN = _model(_normal)
_ACROSS_MODULES = {
    "modules/one-zero": {"x": _PLAIN["x"], "y": _model(_zero)["y"]},
    "modules/apart": {"x": _PLAIN["x"], "y": _model(_scaled(1e-3, 1e-3))["y"]},
    "modules/apart-in-range": {
        "x": _model(_scaled(LARGE, 1))["x"],
        "y": _model(_scaled(TINY, 1))["y"],
    },
}
_SHAPES = _model(
    _normal,
    shapes={
        "r-above-m": (2, 5, 11, R),
        "r-above-n": (11, 5, R),
        "a-number": (1, 1, R),
        "r-is-1": (2, 11, 13, 1),
    },
)
_STORAGE = {
    np.dtype(dtype).name: _model(_scaled(np.geomspace(1, 1e-3, R), 1), dtype=dtype)["x"]
    for dtype in (ml_dtypes.bfloat16, np.float16)
}
