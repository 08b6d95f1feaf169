"""Check the GPU kernels' accuracy and speed against XLA, with the installed JAX.

    python -m tests.benchmarks.kernels

Gram matrices from the kernel are compared with NumPy in float64, at ranks that are
powers of two and others, and whole decompositions with NumPy's singular values, with
and without `jax.enable_x64`. Then the kernel's time is compared with XLA's product in
float64.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import para_jax as para
from para_jax.linalg import factorize
from para_jax.linalg.gpu import gram

RANKS = (1, 2, 3, 4, 7, 8, 12, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128)
DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)
# Layers, inputs and rank of Gemma3-4B, Llama-3-8B, and ranks other than powers of 2.
SHAPES = (
    *((34, 2560, 16), (34, 10240, 16), (32, 4096, 64), (32, 14336, 64)),
    *((32, 4096, 24), (32, 4096, 8), (32, 4096, 4), (32, 4096, 128)),
)
_BOTH = (True, False)


def gram_error(dtype: Any, rank: int, *, tall: bool) -> float:
    """Return the largest error of a Gram matrix, relative to its largest entry."""
    shape = (3, 333, rank) if tall else (3, rank, 333)
    x = np.random.default_rng(rank).normal(size=shape).astype(dtype)
    wide = x.astype(np.float64)
    turned = wide.swapaxes(1, 2)
    want = turned @ wide if tall else wide @ turned
    got = np.asarray(gram.gram(jnp.asarray(x), tall=tall))
    return float(np.abs(got - want).max() / np.abs(want).max())


def spectrum_error(rank: int) -> float:
    """Return the largest error of a singular value, relative to the largest."""
    draw = np.random.default_rng(rank).normal
    a = draw(size=(2, 150, rank)).astype(np.float32)
    b = draw(size=(2, rank, 140)).astype(np.float32)
    found = jax.jit(para.decompose)({"m": para.Adapter(a, b)})["m"].s
    product = a.astype(np.float64) @ b.astype(np.float64)
    want = np.linalg.svd(product, compute_uv=False)[:, : found.shape[-1]]
    return float(np.abs(np.asarray(found) - want).max() / want.max())


def microseconds(function: Callable[[Any], Any], x: Any) -> float:
    """Return the median time of a call, from five batches of twenty calls in a row."""
    jax.block_until_ready(function(x))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(20):
            result = function(x)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / 20)
    return 1e6 * statistics.median(times)


def _plain(x: Any) -> Any:
    x = x.astype(jnp.float64)
    return factorize.matmul(x.mT, x)


def main() -> None:
    """Print the errors and the times."""
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    with jax.enable_x64(True):
        for dtype in DTYPES:
            errors = [
                gram_error(dtype, r, tall=x) for r in RANKS for x in (True, False)
            ]
            # NumPy's maximum, since it propagates NaN.
            print(f"gram of {np.dtype(dtype).name}: error at most {np.max(errors):.1e}")
    for wide in (True, False):
        with jax.enable_x64(wide):
            worst = np.max([spectrum_error(rank) for rank in (*RANKS, 129, 130)])
        print(f"decompose, x64 {'on' if wide else 'off'}: error at most {worst:.1e}")
    print(f"{'[L, m, r]':20}{'dtype':10}{'kernel':>10}{'XLA':>10}   microseconds")
    with jax.enable_x64(True):
        for shape in SHAPES:
            for dtype in (jnp.float32, jnp.bfloat16):
                x = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
                ours = microseconds(lambda x: gram.gram(x, tall=True), x)
                xla = microseconds(jax.jit(_plain), x)
                name = jnp.dtype(dtype).name
                print(f"{shape!s:20}{name:10}{ours:10.1f}{xla:10.1f}")


if __name__ == "__main__":
    main()
