"""Measure accuracy and time of both methods on the current device.

    python -m tests.benchmarks.devices

Prints a table: input, method, bits of the precision, errors of the singular values and
of the product against NumPy in float64, orthogonality of the balanced factors, seconds
of the first call, and the median of five more calls in milliseconds.
"""

import statistics
import time

import jax
import numpy as np

import para_jax as para

SHAPES = {
    "16 of 2048x1536, r 64": (16, 2048, 64, 1536),
    "68 of 2560x2048, r 16": (68, 2560, 16, 2048),
}


def adapters(shape: tuple[int, ...], *, graded: bool) -> dict[str, para.Adapter]:
    rng = np.random.default_rng(0)
    modules, m, r, n = shape
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
        spectra = jax.block_until_ready(decompose(on_device, method=method))
        times.append(time.perf_counter() - start)
    masks = {"layers": np.ones(spectra["layers"].s.shape, bool)}
    child = jax.jit(para.repack)(spectra, masks, on_device)["layers"]
    found = errors(parent["layers"], spectra["layers"], child)
    return (*found, times[0], 1e3 * statistics.median(times[1:]))


def errors(
    parent: para.Adapter, spectrum: para.Spectrum, child: para.Adapter
) -> tuple[float, float, float]:
    a, b, a_hat, b_hat = (
        np.asarray(x[0], np.float64) for x in (parent.a, parent.b, child.a, child.b)
    )
    delta = parent.scale * a @ b
    s = np.linalg.svd(delta, compute_uv=False)[: spectrum.s.shape[-1]]
    unit = a_hat / np.sqrt(s)
    return (
        np.abs(np.asarray(spectrum.s[0]) - s).max() / s[0],
        np.linalg.norm(a_hat @ b_hat - delta) / np.linalg.norm(delta),
        np.abs(unit.T @ unit - np.eye(len(s))).max(),
    )


def main() -> None:
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    columns = ("sigma", "product", "orth", "first s", "ms")
    print(f"{'input':30}{'method':8}{'bits':>4}" + "".join(f"{x:>9}" for x in columns))
    for name, shape in SHAPES.items():
        for graded in (False, True):
            parent = adapters(shape, graded=graded)
            for method in ("qr", "gram"):
                for bits in (32, 64):
                    with jax.enable_x64(bits == 64):
                        row = measured(parent, method)
                    cells = "".join(f"{x:9.0e}" for x in row[:3])
                    cells += f"{row[3]:9.2f}{row[4]:9.2f}"
                    label = f"{name}{', graded' if graded else ''}"
                    print(f"{label:30}{method:8}{bits:4}{cells}", flush=True)


if __name__ == "__main__":
    main()
