"""Test that joined arrays are divided into the same numbers, in short programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from para_jax.linalg import divide
from tests.para_jax.linalg.gpu.test_lowering import KERNEL, as_on

SIZES = [[1] * 37, [3, 1, 2] * 5, [4]]


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = [(37, 5, 2), (30, 7), (4, 2, 2, 3)]
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def check(found, x):
    for y, sizes, parts in zip(x, SIZES, found, strict=True):
        ends = np.cumsum(sizes)
        for end, size, part in zip(ends, sizes, parts, strict=True):
            np.testing.assert_array_equal(part, y[end - size : end], strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.bool_])
@pytest.mark.parametrize("way", [lambda f: f, jax.jit])
def test_the_parts_are_the_rows(dtype, way):
    x = arrays(dtype)

    check(way(lambda x: divide.divide(x, SIZES))(list(map(jnp.asarray, x))), x)


def test_the_parts_are_the_rows_of_a_mapped_axis():
    x = arrays()
    mapped = [jnp.stack([y, -y, 2 * y]) for y in x]

    found = jax.jit(jax.vmap(lambda x: divide.divide(x, SIZES)))(mapped)

    for i, factor in enumerate((1, -1, 2)):
        check([[part[i] for part in row] for row in found], [factor * y for y in x])


def test_the_derivative_is_put_together_again():
    x = list(map(jnp.asarray, arrays()))

    def total(x):
        rows = divide.divide(x, SIZES)
        return sum((i + 1) * part.sum() for row in rows for i, part in enumerate(row))

    for y, sizes, slope in zip(x, SIZES, jax.jit(jax.grad(total))(x), strict=True):
        want = np.repeat(np.arange(len(sizes)) + 1.0, sizes)
        want = np.broadcast_to(want.reshape(-1, *[1] * (y.ndim - 1)), y.shape)
        np.testing.assert_array_equal(slope, want.astype(np.float32))


def test_a_program_for_the_cpu_has_no_slices_at_known_places():
    text = jax.jit(lambda x: divide.divide(x, SIZES)).lower(arrays()).as_text()

    # XLA compiles each of those by itself, for 30 ms each.
    assert text.count("stablehlo.slice") == 0
    assert text.count("stablehlo.dynamic_slice") == sum(map(len, SIZES))


@pytest.mark.parametrize("precision", [True, False])
@pytest.mark.parametrize(
    ("counts", "kernels"),
    [
        # A model of 34 layers with one and two modules of a shape: 34 at a time.
        ([34, 68, 34], 1),
        # More than a kernel takes: 34 and 33 at a time, and all 37.
        ([67, 37], 3),
    ],
)
def test_kernels_for_a_gpu_write_many_parts_each(counts, kernels, precision):
    x = [jax.ShapeDtypeStruct((count, 40, 3), jnp.float32) for count in counts]

    with as_on("gpu"), jax.enable_x64(precision):
        sizes = [[1] * count for count in counts]
        traced = jax.jit(lambda x: divide.divide(x, sizes)).trace(x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()

    assert text.count(KERNEL) == kernels
    assert text.count("stablehlo.slice") <= sum(map(len, sizes)) // 16


def test_parts_of_unequal_rows_are_slices():
    x = [jax.ShapeDtypeStruct((30, 7), jnp.float32)]

    with as_on("gpu"):
        traced = jax.jit(lambda x: divide.divide(x, [[1, 2] * 10])).trace(x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()

    assert KERNEL not in text
