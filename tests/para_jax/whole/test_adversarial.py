"""Test every back end on adapters on which careless numerics fail.

`float32` and `float64` are the traced path, without and with `jax.enable_x64`; `host`
is the path of `compress`. The oracle is NumPy's float64 QR and SVD.
"""

import functools

import jax
import numpy as np
import pytest

import para_jax
from para_jax._adapters.checkpoint import as_checkpoint
from para_jax._pruning.pipeline import cut, spectra_of
from para_jax._pruning.select import exact_masks
from tests import adversarial, reference

CASES = adversarial.cases()
POLICIES = {
    "gamma": para_jax.Gamma(0.25),
    "epsilon": para_jax.Epsilon(0.99),
    "params": para_jax.Params(200),
}
# `host` runs the program of `float64`: once is enough.
WAYS = [
    *(("float32", "auto"), ("float64", "auto"), ("host", "auto")),
    *(
        pytest.param(mode, method, marks=pytest.mark.slow)
        for mode in ("float32", "float64")
        for method in ("qr", "gram")
    ),
]
BOUND = 1e-5
EPS = float(np.finfo(np.float32).eps)

# The singular values themselves are beyond float32.
BEYOND_FLOAT32 = {"range/above", "range/below", "range/subnormal"}
# XLA may take a float32 number below the smallest normal one for zero.
SUBNORMAL = {"range/subnormal", "range/subnormal-and-large"}
# Products square the condition number. `gram` says so, and `auto` has to know it.
NOT_FOR_GRAM = {"cancelling/1e-6"}


@functools.partial(jax.jit, static_argnames="method")
def traced(adapters, method):
    spectra = para_jax.decompose(adapters, method=method)
    masks = {x: para_jax.masks(spectra, y) for x, y in POLICIES.items()}
    return spectra, masks, para_jax.repack(spectra, masks["gamma"], adapters)


def on_host(adapters, method):
    spectra = spectra_of(adapters, method=method)
    masks = {x: exact_masks(spectra, y) for x, y in POLICIES.items()}
    child = cut(as_checkpoint(adapters), spectra, POLICIES["gamma"], form="padded")
    return spectra, masks, child.adapters


@functools.cache
def computed(name, method, mode):
    """Return the spectra, the masks by policy, and the child of `gamma`."""
    if mode == "host":
        return on_host(CASES[name], method)
    with jax.enable_x64(mode == "float64"):
        return jax.device_get(traced(CASES[name], method))


@functools.cache
def oracle(name):
    return reference.kernels(CASES[name])


def is_out_of_reach(name, method, mode):
    """Tell whether a case allows no check beyond the absence of NaN."""
    spectra = computed(name, method, mode)[0].values()
    return (
        (mode == "float32" and name in BEYOND_FLOAT32)
        or (method == "gram" and name in NOT_FOR_GRAM)
        or (name in SUBNORMAL and not any(x.s.any() for x in spectra))
    )


def rounding(kernel, mode):
    """Return float32's unavoidable absolute error; wider dtypes have none."""
    return 2 * EPS * kernel.norms if mode == "float32" else 0.0


@functools.cache
def uncertainty(name, mode):
    """Return the error that may change a choice, relative to a module's largest."""
    known = BOUND if mode == "float32" else 1e-7
    found = [x for x in oracle(name).values() if x.top]
    return max([known, *(rounding(x, mode) / x.top for x in found)])


def factors(adapters, path, index):
    x = adapters[path]
    return np.float64(x.a[index]), np.float64(x.b[index])


def kernels(name, method, mode):
    """Yield every kernel, its place, its `s, left, right`, and the rank of `gamma`."""
    if is_out_of_reach(name, method, mode):
        return
    spectra, masks, _ = computed(name, method, mode)
    for (path, *index), kernel in oracle(name).items():
        x, at = spectra[path], tuple(index)
        parts = [np.float64(y[at]) for y in (x.s, x.left, x.right)]
        yield kernel, (path, at), parts, int(masks["gamma"][path][at].sum())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("mode", "method"), WAYS)
class TestOnEveryInput:
    def test_nothing_is_nan_and_every_factor_is_finite(self, mode, method, name):
        spectra, _, child = computed(name, method, mode)

        for path, x in spectra.items():
            assert not np.isnan(x.s).any(), path
            assert np.isfinite(x.left).all(), path
            assert np.isfinite(x.right).all(), path
        for path, x in child.items():
            assert np.isfinite(np.float64(x.a)).all(), path
            assert np.isfinite(np.float64(x.b)).all(), path

    def test_as_many_components_count_as_there_are(self, mode, method, name):
        for kernel, where, (_, left, right), _ in kernels(name, method, mode):
            near = (0.5 if mode == "float32" else 0.1) * kernel.floor
            least = (kernel.s > kernel.floor + near + rounding(kernel, mode)).sum()
            most = (kernel.s > kernel.floor - near).sum()
            assert least <= left.any(0).sum() == right.any(1).sum() <= most, where

    def test_a_policy_keeps_what_it_should(self, mode, method, name):
        if is_out_of_reach(name, method, mode):
            return
        masks = computed(name, method, mode)[1]
        for policy in POLICIES:
            want = reference.cut(oracle(name), POLICIES[policy])
            got = {
                (path, *index): int(masks[policy][path][tuple(index)].sum())
                for path, *index in want.ranks
            }
            if min(want.gap, want.slack) > uncertainty(name, mode):
                assert got == want.ranks, policy
            elif policy == "gamma":
                assert sum(got.values()) == sum(want.ranks.values()), policy

    def test_the_kept_singular_values_are_right(self, mode, method, name):
        for kernel, where, (s, *_), kept in kernels(name, method, mode):
            want = kernel.s[:kept]
            scale = kernel.top if mode == "float32" else want
            error = np.abs(s[:kept] - want)
            assert (error <= BOUND * scale + rounding(kernel, mode)).all(), where

    def test_the_kept_product_is_right(self, mode, method, name):
        for kernel, where, (_, left, right), kept in kernels(name, method, mode):
            a, b = factors(CASES[name], *where)
            product = (a @ left[:, :kept]) @ (right[:kept] @ b)
            want = kernel.product(slice(kept))
            bound = BOUND * np.linalg.norm(want) + rounding(kernel, mode)
            error = np.linalg.norm(kernel.product() - product)
            least = np.linalg.norm(kernel.s[kept:])
            assert error <= least * (1 + 1e-12) + bound, where
            # Any of several almost equal components may be kept.
            if kept and kernel.s[kept:].max(initial=0) < 0.99 * kernel.s[kept - 1]:
                assert np.linalg.norm(product - want) <= bound, where

    def test_the_child_is_the_kept_product_as_stored(self, mode, method, name):
        if name in SUBNORMAL and mode != "host" and jax.default_backend() == "gpu":
            pytest.skip("A GPU's tensor cores lose the last bits of such factors.")
        child = computed(name, method, mode)[2]
        for kernel, (path, at), (_, left, right), kept in kernels(name, method, mode):
            if not kept:
                continue
            a, b = factors(CASES[name], path, at)
            want = (a @ left[:, :kept]) @ (right[:kept] @ b)
            a_hat, b_hat = factors(child, path, at)
            eps = float(jax.numpy.finfo(child[path].a.dtype).eps)
            # A traced child is multiplied in float32, as it is stored.
            products = mode if mode == "host" else "float32"
            bound = 4 * eps * np.linalg.norm(want) + rounding(kernel, products)
            assert np.linalg.norm(a_hat @ b_hat - want) <= bound, (path, at)
