"""Test the kernel of products step by step on the CPU, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from para_jax.linalg.gpu import multiply
from tests.para_jax.linalg.gpu.test_lowering import KERNEL, as_on


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tall", [True, False])
@pytest.mark.parametrize(
    ("depth", "rank", "new"), [(1, 1, 1), (131, 5, 3), (300, 16, 16), (70, 24, 40)]
)
def test_products_with_some_matrices_of_a_stack(depth, rank, new, tall, dtype):
    rng = np.random.default_rng(rank)
    x = rng.normal(size=(2, depth, rank) if tall else (2, rank, depth))
    w = rng.normal(size=(4, rank, new) if tall else (4, new, rank)).astype("float32")
    x = jnp.asarray(x, dtype)

    found = multiply.multiply(
        *(np.array([1], np.int32), jnp.asarray(w), x),
        tall=tall,
        dtype="float32",
        interpret=True,
    )

    wide = np.float64(np.asarray(x.astype("float32")))
    want = wide @ w[1:3] if tall else w[1:3] @ wide
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_in_its_own_product():
    x = np.ones((3, 40, 4), np.float32)
    x[1, 7, 2] = np.nan

    found = multiply.multiply(
        *(np.zeros(1, np.int32), jnp.ones((3, 4, 4)), jnp.asarray(x)),
        tall=True,
        dtype="float32",
        interpret=True,
    )

    assert np.isnan(found[1, 7]).all()
    assert np.isfinite(np.delete(found, 1, axis=0)).all()


@pytest.mark.parametrize("first", range(1, 65, 16))
def test_products_of_every_rank_are_lowered(first):
    for rank in range(first, first + 16):
        tall = rank % 2 == 0
        shapes = (1,), (3, rank, rank), (2, 40, rank) if tall else (2, rank, 40)
        dtypes = np.int32, np.float32, np.float32
        args = map(jax.ShapeDtypeStruct, shapes, dtypes)
        with as_on("gpu"):
            traced = multiply.multiply.trace(*args, tall=tall, dtype="bfloat16")
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert KERNEL in text, rank
