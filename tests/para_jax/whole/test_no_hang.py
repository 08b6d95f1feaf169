"""Test that nothing hangs, in particular on machines of two cores.

XLA:CPU (jax 0.10.2) never returns from a program that runs two independent batched
LAPACK calls on two cores. `jax.vmap(jnp.linalg.qr)` of two arrays in one `jit` is
enough, so a caller's own code can hang like this whatever the library does. The library
must not hang, alone or beside one such call. Each run is a process of its own with a
time limit, as no Python code runs while XLA hangs.
"""

import os
import subprocess
import sys

import pytest

LIMIT = 300  # Seconds. A run takes a few, but on a busy machine many times as many.

PRELUDE = """
import jax, jax.numpy as jnp, numpy as np
import para_jax

rng = np.random.default_rng(0)
LAYERS = 34
SHAPES = [
    (512, 257, 16), (256, 511, 16), (384, 385, 16), (300, 301, 8),
    (301, 900, 8), (700, 128, 4), (129, 640, 4),
]
adapters = {
    f"{m}-{n}": para_jax.Adapter(
        a=rng.normal(size=(LAYERS, m, r)).astype(np.float32),
        b=rng.normal(size=(LAYERS, r, n)).astype(np.float32),
        scale=2.0,
    )
    for m, n, r in SHAPES
}

def pipeline(adapters, method):
    spectra = para_jax.decompose(adapters, method=method)
    kept = para_jax.masks(spectra, para_jax.Gamma(0.25))
    return para_jax.repack(spectra, kept, adapters, form="masked")
"""

EVERYTHING = """
for method in ("qr", "gram"):
    masked = jax.jit(pipeline, static_argnames="method")(adapters, method=method)
    assert len(jax.block_until_ready(masked)) == 7
child = para_jax.compress(adapters, para_jax.Gamma(0.25))
children = para_jax.family(adapters, [para_jax.Gamma(0.5), para_jax.Epsilon(0.9)])
kept = [x.report.kept_rank for x in (child, *children)]
assert kept[:2] == [18 * LAYERS, 36 * LAYERS], kept
assert 0 < kept[2] < 72 * LAYERS
print("returned")
"""

VMAPPED = """
two = jax.tree.map(lambda x: np.stack([x, 2 * x]), adapters)
decompose = jax.jit(jax.vmap(para_jax.decompose, in_axes=0))
spectra = jax.block_until_ready(decompose(two))
ratio = [x.s[1] / x.s[0] for x in spectra.values()]
assert all(np.allclose(x, 4, rtol=1e-3) for x in ratio)
print("returned")
"""

BESIDE_THE_CALLERS = """
def program(adapters, mine):
    return para_jax.decompose(adapters), jax.vmap(jnp.linalg.qr)(mine)

mine = rng.normal(size=(34, 1024, 16)).astype(np.float32)
jax.block_until_ready(jax.jit(program)(adapters, mine))
print("returned")
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def run(program, cache):
    """Run `program` as a user would, with programs compiled once."""
    environment = os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + program],
            cwd=cache,  # Not the checkout: `-c` would import from there.
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"It hangs: no answer in {LIMIT} s.")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("returned\n")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(10))
def test_the_whole_pipeline_returns(cache, attempt):
    run(EVERYTHING, cache)


@pytest.mark.slow
def test_a_vmapped_decomposition_returns(cache):
    run(VMAPPED, cache)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_a_decomposition_beside_the_callers_own_batched_qr_returns(cache, attempt):
    run(BESIDE_THE_CALLERS, cache)
