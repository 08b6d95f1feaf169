"""Test how a GPU joins and divides many arrays, by lowering programs without one.

Without kernels the same pieces are made by plain operations, which run here.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax
from para_jax.linalg import pieces
from para_jax.linalg.gpu import copies
from tests.para_jax.linalg.gpu.test_lowering import KERNEL, as_on


def factors(counts=(34, 68, 1), stack=()):
    rng = np.random.default_rng(0)
    shapes = [(*stack, 12, 3), (*stack, 3, 7), (*stack, 5, 5)]
    return [
        [jnp.asarray(rng.normal(size=shape)) for _ in range(count)]
        for count, shape in zip(counts, shapes, strict=True)
    ]


def lowered(function, *args):
    with as_on("gpu"):
        traced = jax.jit(function).trace(*args)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_pieces_are_of_one_length_and_in_order():
    groups = factors()

    found = pieces.join(groups)

    assert [[len(x) for x in row] for row in found] == [[34], [34, 34], [1]]
    for row, group in zip(found, groups, strict=True):
        np.testing.assert_array_equal(np.concatenate(row), np.stack(group))


@pytest.mark.parametrize("axes", [(1,), (2, 2)])
def test_a_single_stack_stays_as_it_is(axes):
    x = jnp.ones((*axes, 4, 3))

    ((found,),) = pieces.join([[x]])

    assert found.shape == x.shape


def test_what_was_joined_is_divided():
    groups = factors()
    rows = [x for row in pieces.join(groups) for x in row]

    parts = [part for row in pieces.split(rows) for part in row]

    for part, x in zip(parts, [x for group in groups for x in group], strict=True):
        np.testing.assert_array_equal(part, x, strict=True)


def test_a_gpu_joins_and_divides_by_kernels():
    text = lowered(lambda x: pieces.split(pieces.join(x)[1]), factors())

    # One join and one division: the compiler makes the pieces of a shape by one kernel.
    assert text.count(KERNEL) == 2
    assert "stablehlo.concatenate" not in text


def test_joined_factors_have_a_derivative_on_a_gpu():
    def total(groups):
        return sum((x * x).sum() for row in pieces.join(groups) for x in row)

    assert KERNEL in lowered(jax.grad(total), factors())
    slopes = jax.grad(total)(factors())
    for slope, x in zip(slopes[1], factors()[1], strict=True):
        np.testing.assert_allclose(slope, 2 * x)


def test_a_model_of_many_arrays_has_a_derivative_on_a_gpu():
    def energy(adapters):
        found = para_jax.decompose(adapters)
        return sum((x.s * x.s).sum() for x in found.values())

    shapes = (12, 3), (3, 7)
    a, b = (jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes)
    model = {f"layers/{i}/x": para_jax.Adapter(a, b) for i in range(34)}

    assert KERNEL in lowered(jax.grad(energy), model)


def test_where_a_kernel_is_broken_plain_operations_join(monkeypatch):
    def broken(*_, **__):
        raise NotImplementedError("Not in this JAX.")

    monkeypatch.setattr(copies, "_join", broken)
    monkeypatch.setattr(copies, "_split", broken)
    jax.clear_caches()
    try:
        text = lowered(lambda x: pieces.split(pieces.join(x)[1]), factors())
    finally:
        jax.clear_caches()

    assert KERNEL not in text
    assert "stablehlo.concatenate" in text


def test_numpy_stacks_in_a_program_for_a_gpu_are_joined_by_their_shapes():
    rng = np.random.default_rng(0)

    def stack(*axes):
        a, b = rng.normal(size=(*axes, 12, 3)), rng.normal(size=(*axes, 3, 7))
        return para_jax.Adapter(a, b)

    model = {"p": stack(2), "q": stack(1), "s": stack(3), "t": stack(2)}

    def cut():
        spectra = para_jax.decompose(model)
        kept = para_jax.masks(spectra, para_jax.Gamma(0.5))
        return para_jax.repack(spectra, kept, model, form="masked")

    with as_on("gpu"):
        traced = jax.jit(cut).trace()
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        child = jax.eval_shape(cut)

    # `p` and `t` share what others, of other lengths, do not.
    assert KERNEL in text
    assert {path: x.a.shape for path, x in child.items()} == {
        path: x.a.shape for path, x in model.items()
    }


def test_a_cut_joins_every_factor_once():
    # With `b` smaller than `a`, which alone would be joined by other kernels.
    a = jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    b = jax.ShapeDtypeStruct((8, 1024), jnp.float32)
    model = {f"layers/{i}/v": para_jax.Adapter(a, b) for i in range(20)}

    def cut(model):
        spectra = para_jax.decompose(model)
        kept = para_jax.masks(spectra, para_jax.Gamma(0.5))
        return para_jax.repack(spectra, kept, model, form="masked")

    text = lowered(cut, model)

    kernel = r'grid_x = (\d+) [^"]*ir = "(?:[^"\\]|\\.)*", name = "copies"'
    # Joins of `a` and of `b` and divisions: two sizes, but one grid for all.
    assert re.findall(kernel, text) == ["16"] * 4
