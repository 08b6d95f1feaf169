"""Test the way of a TPU, computed here. The oracle is NumPy's float64 QR and SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from para_jax.linalg import cores
from tests import adversarial, reference

CASES = adversarial.cases()
EPS = float(np.finfo(np.float32).eps)
# The singular values themselves are beyond float32, or products lose them: see `gram`.
BEYOND = {
    *("range/above", "range/below", "range/subnormal", "range/subnormal-and-large"),
    "cancelling/1e-6",
}
on_tpu = jax.jit(cores._on_tpu)


@pytest.mark.parametrize("name", sorted(CASES.keys() - BEYOND))
def test_spectra_and_products_are_right(name):
    for path, x in CASES[name].items():
        a, b = jnp.asarray(x.a), jnp.asarray(x.b)
        scale = jnp.full(x.modules, x.scale, "float32")
        s, left, right = jax.device_get(on_tpu([a], [b], scale))
        known = reference.kernels(CASES[name]).items()
        kernels = [kernel for (p, *_), kernel in known if p == path]
        rows = (y.reshape(-1, *y.shape[-2:]) for y in (x.a, x.b))
        pairs = zip(*rows, strict=True)
        for i, (kernel, (a_i, b_i)) in enumerate(zip(kernels, pairs, strict=True)):
            bound = 1e-5 * kernel.top + 2 * EPS * kernel.norms
            k = len(kernel.s)
            assert (np.abs(s[i][:k] - kernel.s) <= bound).all(), path
            assert np.isfinite(left[i]).all()
            assert np.isfinite(right[i]).all()
            product = (np.float64(a_i) @ left[i]) @ (right[i] @ np.float64(b_i))
            error = np.linalg.norm(product - kernel.product())
            assert error <= bound * np.sqrt(k) + kernel.floor * k, path


def test_what_is_not_finite_is_nan_and_harms_no_other():
    x = CASES["ordinary"]["x"]
    a = x.a.copy()
    a[1, 3, 2] = np.nan

    s, *_ = on_tpu([jnp.asarray(a)], [jnp.asarray(x.b)], jnp.ones(2, "float32"))

    assert np.isnan(s[1]).all()
    want = reference.kernels(CASES["ordinary"])["x", 0].s
    np.testing.assert_allclose(s[0], want, atol=1e-5 * want[0])


def test_in_a_program_with_float64_it_computes_in_float32():
    x = CASES["ordinary"]["x"]

    with jax.enable_x64(True):
        s = on_tpu([jnp.asarray(x.a)], [jnp.asarray(x.b)], jnp.ones(2)).s

    want = reference.kernels(CASES["ordinary"])["x", 0].s
    assert s.dtype == np.float64
    np.testing.assert_allclose(s[0], want, atol=1e-5 * want[0])


def test_a_batch_may_be_mapped_over():
    x = CASES["ordinary"]["x"]

    mapped = jax.vmap(lambda a, b: cores._on_tpu([a], [b], jnp.ones(1, "float32")))
    s = jax.jit(mapped)(jnp.asarray(x.a), jnp.asarray(x.b)).s

    for i in range(2):
        want = reference.kernels(CASES["ordinary"])["x", i].s
        np.testing.assert_allclose(s[i, 0], want, atol=1e-5 * want[0])
