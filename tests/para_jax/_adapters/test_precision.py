"""Test that float64 arrays give the same outside of `enable_x64` as inside.

Warnings are errors: JAX would warn if it converted them to float32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import para_jax
from para_jax import Bytes, Epsilon, Gamma, Params, Rank, Threshold

pytestmark = pytest.mark.user_defaults

POLICIES = [
    Gamma(0.5),
    Gamma(0.4, scope="local", remainder="greedy"),
    Gamma(0.5, ties="threshold"),
    Rank(2.5, multiple_of=2),
    Params(60),
    Bytes(300, min_rank=1),
    Epsilon(0.9),
    Epsilon(0.9, scope="local"),
    Threshold(2.0, max_rank=3),
]
FORMS = ["masked", "padded", "ragged"]


@functools.cache
def parent(dtype):
    """Return adapters and their spectra, made inside the block."""
    rng = np.random.default_rng(0)
    arrays = {
        f"m{i}": para_jax.Adapter(
            rng.normal(size=(2, 7, 4)).astype(dtype),
            rng.normal(size=(2, 4, 5)).astype(dtype),
            1.5,
        )
        for i in range(3)
    }
    with jax.enable_x64(True):
        adapters = jax.tree.map(jnp.asarray, arrays)
        return adapters, para_jax.decompose(adapters)


def check_equal(got, want):
    """Check values and dtypes, to the last bit but for sums in another order."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda x: x.name)
def test_masks_are_those_that_ranks_count(policy):
    _, spectra = parent("float32")
    want = para_jax.ranks(spectra, policy)

    eager = para_jax.masks(spectra, policy)
    known = jax.jit(lambda x: para_jax.masks(x, policy))(spectra)
    traced = jax.jit(para_jax.masks)(spectra, policy)

    for masks in (eager, known, traced):
        for path, rank in want.items():
            np.testing.assert_array_equal(masks[path].sum(-1), rank)


def test_masks_of_many_budgets_and_in_a_branch():
    _, spectra = parent("float32")
    budgets = Gamma(jnp.array([0.3, 0.6]))

    mapped = jax.vmap(para_jax.masks, in_axes=(None, 0))
    many = jax.jit(mapped)(spectra, budgets)
    eager = mapped(spectra, budgets)
    branch = jax.jit(
        lambda x, yes: jax.lax.cond(
            yes,
            lambda x: para_jax.masks(x, Gamma(0.6)),
            lambda x: para_jax.masks(x, Gamma(0.3)),
            x,
        )
    )(spectra, jnp.array(True))

    for i, gamma in enumerate([0.3, 0.6]):
        for path, rank in para_jax.ranks(spectra, Gamma(gamma)).items():
            np.testing.assert_array_equal(many[path][i].sum(-1), rank)
            np.testing.assert_array_equal(eager[path][i].sum(-1), rank)
            if gamma == 0.6:
                np.testing.assert_array_equal(branch[path].sum(-1), rank)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_children_of_all_forms_are_those_of_the_block(form, dtype):
    adapters, spectra = parent(dtype)
    with jax.enable_x64(True):
        masks = para_jax.masks(spectra, Gamma(0.5))
        want = para_jax.repack(spectra, masks, adapters, form=form)

    check_equal(para_jax.repack(spectra, masks, adapters, form=form), want)
    if form == "masked":
        check_equal(jax.jit(para_jax.repack)(spectra, masks, adapters), want)


def in_two_places(function, *args):
    """Return a function's results outside of the block and inside."""
    outside = function(*args)
    with jax.enable_x64(True):
        return outside, function(*args)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "function",
    [
        lambda adapters, spectra, masks: para_jax.pack(
            spectra, masks, adapters, width=2
        ),
        lambda adapters, *_: para_jax.decompose(adapters),
        lambda adapters, *_: para_jax.squeeze(adapters, Gamma(0.5)),
    ],
    ids=["pack", "decompose", "squeeze"],
)
def test_traced_functions_of_float64_adapters(function, compiled):
    adapters, spectra = parent("float64")
    with jax.enable_x64(True):
        masks = para_jax.masks(spectra, Gamma(0.5))

    function = jax.jit(function) if compiled else function
    check_equal(*in_two_places(function, adapters, spectra, masks))


@pytest.mark.parametrize(
    "function",
    [
        lambda adapters: para_jax.shrink(adapters, Gamma(0.5)),
        lambda adapters: para_jax.compress(adapters, Gamma(0.5)).adapters,
        lambda adapters: para_jax.from_params(para_jax.to_params(adapters), scale=1.5),
    ],
    ids=["shrink", "compress", "params"],
)
def test_host_functions_of_float64_adapters(function):
    check_equal(*in_two_places(function, parent("float64")[0]))


def test_moments_in_float64_stay_so():
    adapters, _ = parent("float64")
    with jax.enable_x64(True):
        _, transforms = para_jax.squeeze(adapters, Gamma(0.5))

    def project(moments):
        state = optax.TraceState(trace=moments)
        return para_jax.project_moments(state, transforms)

    for function in (project, jax.jit(project)):
        check_equal(*in_two_places(function, adapters))


def test_what_is_made_outside_stays_float32():
    adapters = jax.tree.map(np.asarray, parent("float64")[0])

    spectra = para_jax.decompose(adapters)

    assert {x.s.dtype for x in spectra.values()} == {np.dtype("float32")}
    assert not jax.config.jax_enable_x64
