"""Test the choice by platform, by lowering programs for platforms that are not here."""

import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax
from para_jax.linalg import platforms

FUNCTIONS = {
    "cpu": lambda x: jnp.sin(x),
    "cuda": lambda x: jnp.cos(x),
    "tpu": lambda x: jnp.tanh(x),
    "default": lambda x: jnp.sqrt(x),
}
WORDS = {"cpu": "sine", "cuda": "cosine", "tpu": "tanh", "rocm": "sqrt"}
X = np.float32([0.5, 1.0])


def choose(x):
    return platforms.by_platform(x, out=jax.typeof(x), **FUNCTIONS)


def lowered(function, platform, *args):
    traced = jax.jit(function).trace(*args)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", WORDS)
@pytest.mark.parametrize("transform", [lambda f: f, jax.vmap])
def test_a_program_has_the_function_of_its_platform_alone(platform, transform):
    text = lowered(transform(choose), platform, X)

    for other, word in WORDS.items():
        assert (f"stablehlo.{word} " in text) == (other == platform)


def test_no_other_is_traced():
    def never(x):
        raise AssertionError

    @jax.jit
    def chosen(x):
        others = dict.fromkeys(("cuda", "tpu", "default"), never)
        return platforms.by_platform(x, out=jax.typeof(x), cpu=jnp.sin, **others)

    np.testing.assert_allclose(chosen(X), np.sin(X), rtol=1e-6)


def test_it_runs_eagerly_mapped_and_differentiated():
    x = jnp.asarray(X)

    np.testing.assert_allclose(choose(x), np.sin(X), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(choose))(x), np.sin(X), rtol=1e-6)
    slope = jax.jit(jax.grad(lambda x: choose(x).sum()))(x)
    np.testing.assert_allclose(slope, np.cos(X), rtol=1e-6)


@pytest.mark.parametrize("transform", [lambda f: f, jax.vmap])
def test_outside_of_a_program_it_is_compiled_once(transform):
    traced = []

    def sine(x):
        traced.append(x)
        return jnp.sin(x)

    others = dict.fromkeys(("cuda", "tpu", "default"), jnp.cos)

    def chosen(x):
        return platforms.by_platform(x, out=jax.typeof(x), cpu=sine, **others)

    for _ in range(3):
        found = transform(chosen)(jnp.asarray(X))
        np.testing.assert_allclose(found, np.sin(X), rtol=1e-6)

    assert len(traced) == 1


def test_it_runs_where_nothing_is_compiled():
    with jax.disable_jit():
        np.testing.assert_allclose(choose(jnp.asarray(X)), np.sin(X), rtol=1e-6)


def test_single_calls_of_the_library_are_compiled_once():
    rng = np.random.default_rng(0)
    adapters = {
        str(i): para_jax.Adapter(
            jnp.asarray(rng.normal(size=(7, 3)), jnp.float32),
            jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
        )
        for i in range(20)  # Enough to be divided by `linalg.divide`.
    }

    def cut():
        spectra = para_jax.decompose(adapters)
        kept = para_jax.masks(spectra, para_jax.Gamma(0.5))
        jax.block_until_ready(para_jax.repack(spectra, kept, adapters, form="masked"))

    cut()
    with jax.log_compiles(), warnings.catch_warnings(record=True):
        compiled = counted(cut)

    assert compiled == []


def counted(function):
    """Return the names of the programs that a call compiles."""
    names = []

    class Compiled(logging.Handler):
        def emit(self, record):
            text = record.getMessage()
            if text.startswith("Finished XLA compilation"):
                names.append(text)

    logger, handler = logging.getLogger("jax"), Compiled()
    logger.addHandler(handler)
    try:
        function()
    finally:
        logger.removeHandler(handler)
    return names


@pytest.mark.user_defaults
def test_it_is_lowered_in_the_precision_that_it_was_traced_in():
    with jax.enable_x64(True):
        traced = jax.jit(choose).trace(np.float64(X))

    assert "f64" in traced.lower().as_text()


@pytest.mark.parametrize("wide", [True, False])
def test_auto_is_decided_by_the_platform_of_the_program(wide):
    """By the library calls of each: LAPACK, cuSOLVER, and on a TPU neither."""
    shapes = (
        jax.ShapeDtypeStruct((2, 24, 5), "float32"),
        jax.ShapeDtypeStruct((2, 5, 16), "float32"),
    )
    with jax.enable_x64(wide):
        adapters = {"x": para_jax.Adapter(*shapes, 2.0)}
        text = {x: lowered(para_jax.decompose, x, adapters) for x in WORDS}

    assert "lapack_" in text["cpu"]
    assert "syevd" not in text["cpu"]
    assert ("cusolver_syevd" in text["cuda"]) or ("cusolver_potrf" in text["cuda"])
    for name in ("lapack", "cusolver", "Eigh", "f64[2,24"):
        assert name not in text["tpu"]
