"""Test the kernels that join and divide arrays, step by step on the CPU.

That the shapes of a model share a compiled kernel is read from what the compiler gets:
the same text for all of them.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from para_jax.linalg.gpu import copies
from tests.para_jax.linalg.gpu.test_lowering import as_on

# Shorter than a step, a whole number of steps, more, and no multiple of 16.
SIZES = [7, 16, 2048, 4096, 5000]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "bool"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_joined_and_divided(count, size, dtype):
    rng = np.random.default_rng(size)
    x = [jnp.asarray(rng.normal(size=size), dtype) for _ in range(count)]
    # More programs than this size needs, as beside larger ones.
    blocks = copies.blocks(size, [size, 3 * size])
    units = copies.units(size)

    joined = copies.join(units, *x, blocks=blocks, interpret=True)
    parts = copies.split(units, joined, blocks=blocks, interpret=True)

    np.testing.assert_array_equal(joined, np.stack(x), strict=True)
    assert len(parts) == count
    for part, row in zip(parts, x, strict=True):
        np.testing.assert_array_equal(part, row, strict=True)


def kernel(function, *shapes):
    """Return the kernel in a lowered program."""
    units = jax.ShapeDtypeStruct((1,), np.int32)
    args = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    with as_on("gpu"):
        traced = function.trace(units, *args, blocks=80)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    config = r'mhlo\.backend_config = (\{.*?ir = "(?:[^"\\]|\\.)*".*?\})'
    return re.search(config, text).group(1)


@pytest.mark.parametrize("count", [2, 17])
def test_lengths_share_a_kernel(count):
    long, short = 163840, 16384

    assert kernel(copies.join, *[(long,)] * count) == kernel(
        copies.join, *[(short,)] * count
    )
    assert kernel(copies.split, (count, long)) == kernel(copies.split, (count, short))


def test_more_arrays_are_another_kernel():
    assert kernel(copies.join, (64,), (64,)) != kernel(copies.join, *[(64,)] * 3)


def test_arrays_of_other_sizes_have_as_many_programs_if_most_are_not_idle():
    sizes = [2048, 16 * 2048, 17 * 2048]

    assert [copies.blocks(size, sizes) for size in sizes] == [16, 17, 17]
