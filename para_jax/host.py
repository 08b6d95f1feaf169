"""Spectra and children of adapters in host memory, by NumPy. Host.

What `spectrum.py` and `repack.py` trace, in float64 and without a compiler: on CPU a
small adapter is done before XLA has compiled a program for it. Kernels of equal shapes
`[m, r]` and `[r, n]` come as sequences of `N`, in any memory order and storage dtype,
and are read block by block: no copy of a factor in float64 ever exists.

A Gram product costs a tenth of a QR. Its columns scaled to unit length, its rounding
`E` changes the root `R` to `(I + F) R`, with `|F| <= |E| / lambda` for the smallest
eigenvalue `lambda` of the Gram matrix. The core is then `(I + F_a) M (I + F_b^T)`, and
no singular value changes by more than the factor `1 + |F_a| + |F_b|`, however much the
two factors cancel. So `lambda` tells which kernels need a QR.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from para_jax import threads
from para_jax.adapters import Adapter
from para_jax.core import RESOLUTION, SIGNING
from para_jax.groups import Group, Progress, all_pieces
from para_jax.spectrum import Method, Spectra, Spectrum

# What is cast at a time, in numbers: 1 MB in float64, which stays in the cache.
_BLOCK = 2**17

# How far rounding, r * eps, may move the singular values of `auto`, relatively.
_MOVED = 1e-8

Kernels = Sequence[np.ndarray]
Roots = Callable[[Kernels], Float[np.ndarray, "N r r"]]


def serves(adapters: Mapping[str, Adapter]) -> bool:
    """Returns whether NumPy is the way: factors that JAX would compute with on CPU."""
    if jax.default_backend() != "cpu":
        return False
    factors = [x for adapter in adapters.values() for x in (adapter.a, adapter.b)]
    return all(isinstance(x, np.ndarray) or len(x.devices()) == 1 for x in factors)


def spectra(
    pieces: Sequence[tuple[Group, slice]],
    adapters: Mapping[str, Adapter],
    method: Method,
) -> list[Spectrum]:
    """Returns the spectra of the kernels of each piece, joined, of scale 1."""
    return [_spectrum(group, rows, adapters, method) for group, rows in pieces]


def _spectrum(
    group: Group, rows: slice, adapters: Mapping[str, Adapter], method: Method
) -> Spectrum:
    members = group.members()[rows]
    a = [np.asarray(adapters[path].a)[index] for path, index in members]
    b = [np.asarray(adapters[path].b)[index] for path, index in members]
    s, left, right = decompose(a, b, method=method)
    return Spectrum(
        s=s,
        left=left,
        right=right,
        shape=(len(a[0]), b[0].shape[-1]),
        dtype=a[0].dtype.name,
        nominal=s.shape[-1],
    )


def decompose(a: Kernels, b: Kernels, *, method: Method = "auto") -> tuple[Any, ...]:
    """Returns `s`, `left` and `right` of each `a @ b`, see `Spectrum`.

    Args:
      a: `N` factors `[m, r]`.
      b: `N` factors `[r, n]`.
      method: `qr` or `gram` for all; or `auto`: `gram`, and `qr` for those that it
        would lose digits of. Those are kernels with almost dependent columns, and
        float64 factors, whose squares may leave its range.

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
    with np.errstate(over="ignore", invalid="ignore"):  # NaN tells it as well.
        s, left, right = _balanced(roots(a), roots([x.T for x in b]))
    return s[:, :k], left[..., :k], right[:, :k]


def _balanced(
    r_a: Float[np.ndarray, "N r r"], r_b: Float[np.ndarray, "N r r"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    core = r_a @ r_b.mT
    finite = np.all(np.isfinite(core), axis=(-2, -1))
    u, s, vt = np.linalg.svd(np.where(finite[:, None, None], core, 0))
    s = _without_noise(s, r_a, r_b)
    nonzero = s > s.shape[-1] * RESOLUTION * s[:, :1]  # As `core.tolerance`.
    weight = np.where(nonzero, 1 / np.sqrt(np.where(nonzero, s, 1)), 0)
    left = (r_b.mT @ vt.mT) * weight[:, None, :]
    right = (u.mT @ r_a) * weight[:, :, None]
    return np.where(finite[:, None], s, np.nan), left, right


def _without_noise(
    s: Float[np.ndarray, "N r"],
    r_a: Float[np.ndarray, "N r r"],
    r_b: Float[np.ndarray, "N r r"],
) -> Float[np.ndarray, "N r"]:
    """Returns `s`, zero where columns cancel to rounding, as in `core`.

    Unless squares leave the range of float64.
    """
    norms = np.linalg.norm(r_a, axis=-2) * np.linalg.norm(r_b, axis=-2)
    noise = np.finfo(np.float64).eps * norms.sum(-1, keepdims=True)
    resolution = s.shape[-1] * RESOLUTION * s[:, :1]
    cancelled = (s <= noise) & (noise > resolution) & np.isfinite(noise)
    return np.where(cancelled, 0, s)


def _roots(x: Kernels) -> Float[np.ndarray, "N r r"]:
    if x[0].dtype.itemsize > 4:
        return _qr_roots(x)
    roots, smallest = _gram_roots_and_smallest(x)
    bound = x[0].shape[-1] * np.finfo(np.float64).eps / _MOVED
    for i in np.flatnonzero(~(smallest >= bound)):
        roots[i] = _qr_root(x[int(i)])
    return roots


def _qr_roots(x: Kernels) -> Float[np.ndarray, "N r r"]:
    return np.stack([_qr_root(y) for y in x])


def _qr_root(x: Float[np.ndarray, "d r"]) -> Float[np.ndarray, "r r"]:
    """Returns `R` of `x = Q R`, block by block: that of the last `R` and a block."""
    rank = x.shape[-1]
    root = np.zeros((rank, rank))
    for rows in _blocks(x):
        below = np.concatenate([root, x[rows].astype(np.float64)])
        root = np.asarray(np.linalg.qr(below, mode="r"))
    return root


def _gram_roots(x: Kernels) -> Float[np.ndarray, "N r r"]:
    roots, _ = _gram_roots_and_smallest(x)
    return roots


def _gram_roots_and_smallest(
    x: Kernels,
) -> tuple[Float[np.ndarray, "N r r"], Float[np.ndarray, " N"]]:
    """Returns `R` with `R^T R = x^T x`, and the smallest eigenvalue of the scaled Gram.

    The columns are brought to unit length first: graded factors lose nothing.
    """
    gram = np.stack([_gram(y) for y in x])
    lengths = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    safe = np.where(lengths > 0, lengths, 1)
    gram /= safe[:, :, None]
    gram /= safe[:, None, :]
    # A column of zeros depends on no other one.
    gram += np.where(lengths > 0, 0, 1)[:, :, None] * np.eye(lengths.shape[-1])
    finite = np.all(np.isfinite(gram), axis=(-2, -1))
    values, vectors = np.linalg.eigh(np.where(finite[:, None, None], gram, 0))
    floor = gram.shape[-1] * np.finfo(np.float64).eps
    scale = np.sqrt(np.maximum(values, floor))
    root = scale[:, :, None] * vectors.mT * lengths[:, None, :]
    return root, np.where(finite, values[:, 0], 0)


def _gram(x: Float[np.ndarray, "d r"]) -> Float[np.ndarray, "r r"]:
    total = np.zeros((x.shape[-1], x.shape[-1]))
    for rows in _blocks(x):
        wide = x[rows].astype(np.float64)
        total += wide.T @ wide
    return total


def _blocks(x: np.ndarray) -> Iterator[slice]:
    """Yields the rows of a factor `[d, r]`, as many at a time as are cast at once."""
    rank = x.shape[-1]
    step = max(_BLOCK // rank, 4 * rank)
    return (slice(i, i + step) for i in range(0, len(x), step))


def kernels(
    spectra: Spectra,
    masks: Mapping[str, Any],
    adapters: Mapping[str, Adapter],
    progress: Progress,
) -> Iterator[tuple[str, tuple[int, ...], Adapter]]:
    """Yields every kernel of a child that keeps something, with its path and index."""
    spectra, masks, adapters = jax.tree.map(
        np.asarray, (dict(spectra), dict(masks), dict(adapters))
    )

    def each(piece: tuple[Group, slice]) -> list[tuple[str, Any, Adapter]]:
        group, rows = piece
        found = []
        for path, index in group.members()[rows]:
            kept = np.flatnonzero(masks[path][index])
            if kept.size:
                x, spectrum = adapters[path], spectra[path]
                left = spectrum.left[index][:, kept]
                right = spectrum.right[index][kept]
                child = _child(x.a[index], x.b[index], left, right, spectrum.dtype)
                found.append((path, index, child))
        return found

    todo = all_pieces(adapters)
    for _, found in zip(progress(todo), threads.in_threads(each, todo), strict=True):
        yield from found


def _child(
    a: Float[np.ndarray, "m r"],
    b: Float[np.ndarray, "r n"],
    left: Float[np.ndarray, "r k"],
    right: Float[np.ndarray, "k r"],
    dtype: str,
) -> Adapter:
    """Returns `a @ left` and `right @ b`, computed in float64 and stored in `dtype`.

    The largest of the first entries of each row of the new `b` is positive.
    """
    first = right @ b[:, :SIGNING].astype(np.float64)
    # QR and SVD leave the sign of a component open, differently on each platform.
    sign = np.where(first.max(-1) < -first.min(-1), -1.0, 1.0)
    left, right = left * sign, right * sign[:, None]
    new_a = np.empty((len(a), left.shape[-1]), dtype)
    new_b = np.empty((len(right), b.shape[-1]), dtype)
    with np.errstate(over="ignore"):  # The caller looks for what is not finite.
        for columns in _blocks(b.T):
            new_b[:, columns] = right @ b[:, columns].astype(np.float64)
        for rows in _blocks(a):
            new_a[rows] = a[rows].astype(np.float64) @ left
    return Adapter(a=new_a, b=new_b)
