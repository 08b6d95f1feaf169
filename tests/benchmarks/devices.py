"""Accuracy and time of both methods on whatever device is there.

    python -m tests.benchmarks.devices

A table: method, precision, error of the singular values and of the product against
float64 NumPy, orthogonality of the balanced factors, first call and median time.
"""

import statistics
import time

import jax
import numpy as np

import para_jax as para

SHAPE = (16, 2048, 64, 1536)  # Modules, inputs, rank, outputs.


def adapters(graded: bool) -> dict[str, para.Adapter]:
    rng = np.random.default_rng(0)
    modules, m, r, n = SHAPE
    weights = 10.0 ** -np.linspace(0, 5 if graded else 0, r)
    a = (rng.standard_normal((modules, m, r)) * weights).astype(np.float32)
    b = rng.standard_normal((modules, r, n)).astype(np.float32)
    return {"layers": para.Adapter(a, b, 2.0)}


def measured(parent: dict[str, para.Adapter], method: str) -> tuple[float, ...]:
    decompose = jax.jit(para.decompose, static_argnames="method")
    on_device = jax.device_put(parent)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        spectrum = jax.block_until_ready(decompose(on_device, method=method))["layers"]
        times.append(time.perf_counter() - start)
    masks = {"layers": np.ones(spectrum.s.shape, bool)}
    child = jax.jit(para.repack)({"layers": spectrum}, masks, on_device)["layers"]
    return (
        *errors(parent["layers"], spectrum, child),
        times[0],
        statistics.median(times[1:]),
    )


def errors(parent: para.Adapter, spectrum: para.Spectrum, child: para.Adapter):
    a, b = np.asarray(parent.a[0], np.float64), np.asarray(parent.b[0], np.float64)
    delta = parent.scale * a @ b
    s = np.linalg.svd(delta, compute_uv=False)[: spectrum.s.shape[-1]]
    got = np.asarray(child.a[0], np.float64), np.asarray(child.b[0], np.float64)
    scaled = got[0] / np.sqrt(s)
    return (
        np.abs(np.asarray(spectrum.s[0]) - s).max() / s[0],
        np.linalg.norm(got[0] @ got[1] - delta) / np.linalg.norm(delta),
        np.abs(scaled.T @ scaled - np.eye(len(s))).max(),
    )


def main() -> None:
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {SHAPE=}")
    print(
        f"{'input':8}{'method':8}{'bits':>5}{'sigma':>10}{'product':>10}"
        f"{'orth':>10}{'first s':>10}{'ms':>10}"
    )
    for graded in (False, True):
        parent = adapters(graded)
        for method in ("qr", "gram"):
            for bits in (32, 64):
                with jax.enable_x64(bits == 64):
                    row = measured(parent, method)
                name = "graded" if graded else "random"
                print(
                    f"{name:8}{method:8}{bits:5}"
                    + "".join(f"{x:10.1e}" for x in row[:3])
                    + f"{row[3]:10.2f}{1e3 * row[4]:10.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
