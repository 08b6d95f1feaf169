"""Measure one case: each method in turn, one row per method."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import para_jax as para
from tests.benchmarks import (
    accuracy,
    cases,
    clock,
    contenders,
    torch_contenders as in_torch,
)
from tests.benchmarks.contenders import Adapters, Index, Inputs, Run
from tests.benchmarks.rows import Row

METHODS = (*contenders.WAYS, *in_torch.WAYS)
Ranks = Mapping[str, np.ndarray]


def measured(
    case: cases.Case,
    methods: Sequence[str],
    dtype: str,
    *,
    limit: float,
    place: Mapping[str, Any],
) -> Iterator[Row]:
    """Yield one row per method.

    Args:
      case: The case to compress.
      methods: Some of `METHODS`.
      dtype: The storage dtype of the factors.
      limit: The most seconds that a row should take, excluding its first call.
      place: The fields that all rows share: device, versions, bandwidth.
    """
    adapters = case.factors(dtype)
    ranks = kept_ranks(adapters)
    most = 4 if jax.default_backend() == "cpu" else 24
    inputs = Inputs(
        case=case,
        copies=clock.copies(adapters, most=most),
        width=8 * math.ceil(max(int(x.max()) for x in ranks.values()) / 8),
    )
    floor = 1e3 * floor_bytes(adapters, ranks) / place["bandwidth"]
    blank = functools.partial(
        Row,
        case=case.name,
        modules=case.modules,
        rank=case.rank,
        bytes=cases.nbytes(adapters),
        dtype=dtype,
        floor_ms=floor,
        **place,
    )
    for method in methods:
        found = _tried(method, inputs, ranks, limit)
        ratio = found["ms"] / floor if "ms" in found else None
        yield blank(method=method, ratio=ratio, **found)


def kept_ranks(adapters: Adapters) -> dict[str, np.ndarray]:
    """Return the rank that each module keeps.

    It is computed layer by layer: a program of the timed shapes would leave its tuned
    matrix products to the first call of the methods.
    """

    @jax.jit
    def count(adapters: Any) -> Any:
        spectra = jax.lax.map(para.decompose, adapters)
        masks = para.masks(spectra, para.Gamma(contenders.GAMMA))
        return {path: mask.sum(-1) for path, mask in masks.items()}

    with jax.enable_x64(True):
        return {path: np.asarray(x) for path, x in count(adapters).items()}


def floor_bytes(adapters: Adapters, ranks: Ranks) -> int:
    """Return the bytes to read all factors twice and to write the kept part once."""
    kept = sum(
        int(ranks[path].sum()) * (x.inputs + x.outputs) * x.a.dtype.itemsize
        for path, x in adapters.items()
    )
    return 2 * cases.nbytes(adapters) + kept


def _tried(method: str, inputs: Inputs, ranks: Ranks, limit: float) -> dict[str, Any]:
    """Return the measured fields of a row, or a note with the reason for none."""
    try:
        if method in contenders.WAYS:
            run = contenders.WAYS[method](inputs)
        else:
            run = in_torch.WAYS[method](inputs, limit=limit)
        return _fields(run, inputs.copies[0], ranks, limit)
    except contenders.Skip as reason:
        return {"note": str(reason)}
    except Exception as error:  # After any error the other methods may still run.
        text = str(error).partition("\n")[0]
        return {"note": f"{type(error).__name__}: {text[:100]}"}


def _fields(run: Run, adapters: Adapters, ranks: Ranks, limit: float) -> dict[str, Any]:
    jax.clear_caches()
    whole = run.factor == 1
    with run.context():
        first = clock.first(run.call, run.wait)
        seconds = first if first > limit else clock.median(run.call, run.wait, limit)
        found = {
            "ms": 1e3 * seconds * run.factor,
            "first_ms": 1e3 * first if whole else None,
            "peak_bytes": run.peak() if whole else None,
            "scaled": not whole,
        }
        if run.kept and whole:
            found |= _errors(run.kept, run.call(0), adapters, ranks)
    return found


def _errors(
    kept: Callable[[Any, str, Index], accuracy.Kept],
    result: Any,
    adapters: Adapters,
    ranks: Ranks,
) -> dict[str, float]:
    """Return the largest errors over a few modules of different projections."""
    worst = []
    for path in list(adapters)[:: max(1, len(adapters) // 4)]:
        # The module that keeps most, since a module without ranks has no error.
        place = np.unravel_index(int(ranks[path].argmax()), ranks[path].shape)
        index = tuple(int(i) for i in place)
        x = adapters[path]
        a, b = (np.asarray(y[index]) for y in (x.a, x.b))
        worst.append(accuracy.errors(a, b, x.scale, kept(result, path, index)))
    sigma, product = map(max, zip(*worst, strict=True))
    return {"sigma_error": sigma, "product_error": product}
