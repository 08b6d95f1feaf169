"""Spectra of adapters in host memory, by NumPy: the back end for CPU.

The counterpart of `products.py` and `core.py` in float64 and without a compiler: a
small adapter is done before XLA has compiled a program for it. Kernels of equal shapes
`[m, r]` and `[r, n]` are sequences of `N`, in any memory order and storage dtype, and
are read block by block: no copy of a factor in float64 ever exists.

A Gram product costs a tenth of a QR, and `products.py` bounds its error by the smallest
eigenvalue of the scaled Gram matrix. That bound tells which kernels need a QR.

Runs on the host.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from para_jax.linalg import tolerances
from para_jax.linalg.core import Core
from para_jax.linalg.cores import Method

AT_ONCE = 4
"""Number of kernels that share a call: short calls wait for the interpreter."""

# Numbers of one kernel to cast at a time. Half a MB in float64 stays in the cache, and
# is few enough for OpenBLAS to multiply without packing it.
_GRAM_BLOCK = 2**16

# How far rounding, r * eps, may move the singular values of `auto`, relatively.
_MOVED = 1e-8

Kernels = Sequence[np.ndarray]
Roots = Callable[[Kernels], Float[np.ndarray, "N r r"]]


def decompose(a: Kernels, b: Kernels, *, method: Method = "auto") -> Core:
    """Return the cores of products `a @ b`.

    Args:
      a: `N` factors `[m, r]`.
      b: `N` factors `[r, n]`.
      method: `qr` or `gram` for all; or `auto`: `gram`, and `qr` for kernels that
        lose digits by it. Those have almost dependent columns, or are float64, with
        squares that may leave its range.

    Returns:
      `s [N, k]`, `left [N, r, k]` and `right [N, k, r]` in float64, where
      `k = min(m, n, r)`; `s` is NaN where a factor is not finite.

    Raises:
      ValueError: if the method is unknown.
    """
    try:
        roots: Roots = {"auto": _roots, "qr": _qr_roots, "gram": _gram_roots}[method]
    except KeyError:
        raise ValueError(
            f"Unknown method {method!r}: expected 'auto', 'qr' or 'gram'."
        ) from None
    k = min(len(a[0]), *b[0].shape)
    with np.errstate(over="ignore", invalid="ignore"):  # The result is NaN instead.
        s, left, right = _balanced(roots(a), roots([x.T for x in b]))
    return Core(s[:, :k], left[..., :k], right[:, :k])


def _balanced(
    r_a: Float[np.ndarray, "N r r"], r_b: Float[np.ndarray, "N r r"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # LAPACK would raise for the whole batch if one matrix were not finite.
    core = r_a @ r_b.mT
    finite = np.all(np.isfinite(core), axis=(-2, -1))
    u, s, vt = np.linalg.svd(np.where(finite[:, None, None], core, 0))
    s = _without_noise(s, r_a, r_b)
    nonzero = s > tolerances.floor(s[:, :1], s.shape[-1])
    weight = np.where(nonzero, 1 / np.sqrt(np.where(nonzero, s, 1)), 0)
    left = (r_b.mT @ vt.mT) * weight[:, None, :]
    right = (u.mT @ r_a) * weight[:, :, None]
    return np.where(finite[:, None], s, np.nan), left, right


def _without_noise(
    s: Float[np.ndarray, "N r"],
    r_a: Float[np.ndarray, "N r r"],
    r_b: Float[np.ndarray, "N r r"],
) -> Float[np.ndarray, "N r"]:
    """Set noise to zero: values lost where the parts of the product cancel.

    Unless squares leave the range of float64: then nothing is known of the noise.
    """
    norms = np.linalg.norm(r_a, axis=-2) * np.linalg.norm(r_b, axis=-2)
    whole = norms.sum(-1, keepdims=True)
    return np.where(tolerances.cancelled(s, whole) & np.isfinite(whole), 0, s)


def _roots(x: Kernels) -> Float[np.ndarray, "N r r"]:
    if x[0].dtype.itemsize > 4:
        return _qr_roots(x)
    gram, lengths = _scaled_grams(x)
    lower = _cholesky(gram)
    # At most the smallest eigenvalue, and NaN where there is no factor.
    smallest = 1 / np.square(np.linalg.inv(lower)).sum((-2, -1))
    bound = x[0].shape[-1] * np.finfo(np.float64).eps / _MOVED
    roots = lower.mT * lengths[:, None, :]
    for i in np.flatnonzero(~(smallest >= bound)):
        roots[i] = _qr_root(x[int(i)])
    return roots


def _cholesky(gram: Float[np.ndarray, "N r r"]) -> Float[np.ndarray, "N r r"]:
    """Return `L` of each `gram = L L^T`, NaN for an indefinite matrix."""
    try:
        return np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        if len(gram) == 1:
            return np.full_like(gram, np.nan)
        return np.concatenate([_cholesky(x[None]) for x in gram])


def _qr_roots(x: Kernels) -> Float[np.ndarray, "N r r"]:
    return np.stack([_qr_root(y) for y in x])


def _qr_root(x: Float[np.ndarray, "d r"]) -> Float[np.ndarray, "r r"]:
    """Return `R` of `x = Q R`, by a QR of the last `R` and each block of rows."""
    root = np.zeros((x.shape[-1], x.shape[-1]))
    for _, (wide,) in blocks([x], _GRAM_BLOCK):
        root = np.asarray(np.linalg.qr(np.concatenate([root, wide]), mode="r"))
    return root


def _gram_roots(x: Kernels) -> Float[np.ndarray, "N r r"]:
    """Return `R` with `R^T R = x^T x`, by eigenvectors, since they always exist."""
    gram, lengths = _scaled_grams(x)
    finite = np.all(np.isfinite(gram), axis=(-2, -1))[:, None, None]
    # An eigenvalue below rounding is noise; the floor keeps `R` invertible.
    values, vectors = np.linalg.eigh(np.where(finite, gram, 0))
    floor = gram.shape[-1] * np.finfo(np.float64).eps
    scale = np.sqrt(np.where(values > floor, values, 0))  # As `core.root_of_gram`.
    return scale[:, :, None] * vectors.mT * lengths[:, None, :]


def _scaled_grams(
    x: Kernels,
) -> tuple[Float[np.ndarray, "N r r"], Float[np.ndarray, "N r"]]:
    """Return the Gram products of columns of unit length, and the lengths.

    Errors are then relative to each column's own length: graded factors lose nothing.
    """
    gram = _grams(x)
    lengths = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    safe = np.where(lengths > 0, lengths, 1)
    gram /= safe[:, :, None]
    gram /= safe[:, None, :]
    # A column of zeros depends on no other one.
    gram += np.where(lengths > 0, 0, 1)[:, :, None] * np.eye(lengths.shape[-1])
    return gram, lengths


def _grams(x: Kernels) -> Float[np.ndarray, "N r r"]:
    rank = x[0].shape[-1]
    total = np.zeros((len(x), rank, rank))
    for i in range(0, len(x), AT_ONCE):
        for _, wide in blocks(x[i : i + AT_ONCE], _GRAM_BLOCK):
            total[i : i + AT_ONCE] += wide.mT @ wide  # By a routine for half of it.
    return total


def blocks(
    x: Kernels, numbers: int
) -> Iterator[tuple[slice, Float[np.ndarray, "N d r"]]]:
    """Yield some rows of all kernels `[d, r]` in float64, in their memory order.

    The next rows reuse the same memory: new memory costs a page fault a page, which
    takes longer than to fill it.
    """
    length, rank = x[0].shape
    step = min(length, max(numbers // rank, 4 * rank))
    in_rows = x[0].strides[0] >= x[0].strides[1]
    room = np.empty(len(x) * step * rank)
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        parts = [y[rows] if in_rows else y[rows].T for y in x]
        wide = room[: len(x) * parts[0].size].reshape(len(x), *parts[0].shape)
        for place, part in zip(wide, parts, strict=True):
            place[...] = part  # Not `concatenate`, which keeps the interpreter.
        yield rows, wide if in_rows else wide.mT
