"""Storing a child: whether its dtype has the range, and the cost of 8 bits.

Balanced factors have entries of about `sqrt(s / size)` for a singular value `s`, which
may lie outside of a dtype's range where the update itself does not.

A number of float8_e4m3fn has 4 bits and ends at 448, with a smallest of 2^-9; one of
float8_e5m2 has 3 bits. Rounded to so few, the factors of an update move it by several
percent, and by far more below the dtype's normal range. A spectrum does not know this,
so it is measured here.

Runs on the host.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter, Array
from para_jax._adapters.messages import Argument, Message
from para_jax._adapters.stacks import unstack
from para_jax._pruning.decompose import Spectra

_LEAST = 16  # Times a dtype's smallest number: entries of that size are off by 3 %.


def is_narrow(dtype: str) -> bool:
    """Return whether a dtype has few bits, so the loss has to be measured."""
    return np.dtype(dtype).itemsize == 1


def check_range(
    adapters: Mapping[str, Adapter], spectra: Spectra, kept: Mapping[str, np.ndarray]
) -> None:
    """Check the factors of a child for infinity, and for a loss to underflow.

    Args:
      adapters: A child, ready to be stored.
      spectra: The parent's.
      kept: The mask of each spectrum.

    Raises:
      ValueError: if not. The message names a module.
    """
    for path, x in adapters.items():
        if not (is_finite(x.a) and is_finite(x.b)):
            raise _out_of_range(path, x.a.dtype.name)
    largest = {p: np.max(x.s[kept[p]], initial=0.0) for p, x in spectra.items()}
    path = max(largest, key=largest.__getitem__, default="")
    if not path or not largest[path] or is_narrow(spectra[path].dtype):
        return  # Nothing is kept, or `store` measures it.
    dtype, size = spectra[path].dtype, max(spectra[path].shape)
    least = _LEAST * float(jnp.finfo(dtype).smallest_subnormal)
    if math.sqrt(largest[path] / size) < least:
        raise _out_of_range(path, dtype)


def is_finite(x: Array) -> bool:
    """Return whether all numbers of an array are finite."""
    xp = np if isinstance(x, np.ndarray) else jnp  # What is on a mesh stays there.
    return bool(xp.isfinite(x).all())


def _out_of_range(path: str, dtype: str) -> ValueError:
    wide = "float64" if dtype in ("bfloat16", "float32") else "bfloat16 or float32"
    return ValueError(
        f"'{path}': the child does not fit the range of {dtype}. Store it in {wide}."
    )


def store(
    adapters: Mapping[str, Adapter], dtypes: Mapping[str, str]
) -> dict[str, Adapter]:
    """Return the adapters in their narrow dtypes, those without one as they are.

    Warns, with the relative error in Frobenius norm that rounding adds over the whole
    model.

    Args:
      adapters: A child, in float32.
      dtypes: The dtype of the adapters to round, by path.

    Raises:
      ValueError: if rounding moves an update by more than its dtype's resolution: its
        factors lie beyond or below the dtype's range.
    """
    result, moved, whole = dict(adapters), 0.0, 0.0
    for path in adapters.keys() & dtypes.keys():
        exact, dtype = adapters[path], dtypes[path]
        # An overflow is infinite, which `_squares` reports as an error of infinity.
        with np.errstate(over="ignore", invalid="ignore"):
            small = dataclasses.replace(
                exact, a=exact.a.astype(dtype), b=exact.b.astype(dtype)
            )
        error, size = _squares(exact, small)
        if not error <= (float(jnp.finfo(dtype).eps) ** 2) * size:
            raise ValueError(
                Message(
                    f"'{path}': the child does not fit the range of {dtype}: rounding "
                    f"to it would move the update by {_share(error, size)}. Store it "
                    "in bfloat16 or float32, with ",
                    Argument("dtype", "bfloat16"),
                    ".",
                )
            )
        result[path], moved, whole = small, moved + error, whole + size
    if whole:
        name = ", ".join(sorted(set(dtypes.values())))
        warnings.warn(
            Message(
                f"Rounding to {name} moves the child by {_share(moved, whole)}, which "
                "the report's error leaves out. Store it in bfloat16 to avoid that, "
                "with ",
                Argument("dtype", "bfloat16"),
                ".",
            ),
            stacklevel=2,
        )
    return result


def check_folded(wanted: Mapping[str, Adapter], written: Mapping[str, Adapter]) -> None:
    """Warn if folding scales into factors of 8 bits has rounded them.

    Args:
      wanted: What was to be saved.
      written: What the files hold, under the same paths.
    """
    moved, whole, dtypes, found = 0.0, 0.0, set(), unstack(written)
    for path, x in unstack(wanted).items():
        if path not in found or not is_narrow(np.dtype(x.b.dtype).name):
            continue
        exact = np.asarray(x.b).astype(np.float64) * x.scale
        got = np.asarray(found[path].b).astype(np.float64) * found[path].scale
        kept = min(len(exact), len(got))  # Either may have zeros beyond.
        moved += float(np.sum((got[:kept] - exact[:kept]) ** 2))
        whole += float(np.sum(exact**2))
        dtypes.add(np.dtype(x.b.dtype).name)
    if moved:
        warnings.warn(
            Message(
                f"Folding its scales into factors of {', '.join(sorted(dtypes))} moves "
                f"the written update by {_share(moved, whole)}. Compress it with ",
                Argument("dtype", "bfloat16"),
                " instead, where Gamma(1) keeps all.",
            ),
            stacklevel=3,
        )


def _share(error: float, size: float) -> str:
    share = math.sqrt(error / size) if size and math.isfinite(error) else math.inf
    return f"{share:.1%}" if share < 10 else "more than its size"


def _squares(exact: Adapter, stored: Adapter) -> tuple[float, float]:
    """Return `|exact - stored|^2` and `|exact|^2` of the updates, without a product."""
    one, two = _wide(exact), _wide(stored)
    if one is None or two is None:
        return 0.0, 0.0
    (a, b), (c, d) = one, two
    if not (np.isfinite(c).all() and np.isfinite(d).all()):
        return math.inf, _square(a, b)
    left = np.concatenate([a, c], axis=-1)
    right = np.concatenate([b, -d], axis=-2)
    return _square(left, right), _square(a, b)


def _wide(x: Adapter) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the factors in float64, or None if other processes hold parts of them."""
    for factor in (x.a, x.b):
        if isinstance(factor, jax.Array) and not factor.is_fully_addressable:
            return None
    return np.asarray(x.a).astype(np.float64), np.asarray(x.b).astype(np.float64)


def _square(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum((a.mT @ a) * (b @ b.mT)))
