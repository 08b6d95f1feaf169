"""Test products of many arrays with the matrices of a stack, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from para_jax.linalg import multiply
from para_jax.linalg.multiply import Product
from tests.para_jax.linalg.gpu.test_lowering import KERNEL, as_on

SHAPES = [(30, 5), (12, 5)]


def todo(counts=(3, 20), stack=(), dtype="float32", factory=None):
    """Return products of factors `a` and `b` of two shapes, and their places."""
    rng = np.random.default_rng(0)
    make = factory or (lambda *shape: jnp.asarray(rng.normal(size=shape), dtype))
    left, right = make(sum(counts), 5, 4), make(sum(counts), 4, 5)
    result, first = [], 0
    for count, (d, r) in zip(counts, SHAPES, strict=True):
        a = [make(*stack, d, r) for _ in range(count)]
        b = [make(*stack, r, d) for _ in range(count)]
        result.append(Product(a, left, first, tall=True, dtype="float32"))
        result.append(Product(b, right, first, tall=False, dtype="float32"))
        first += count
    return result


def arrays(products):
    return [(list(x.x), x.w) for x in products]


def of_arrays(products):
    """Return a function of the arrays of products."""

    def run(given):
        pairs = zip(products, given, strict=True)
        return multiply.multiply([x._replace(x=y, w=w) for x, (y, w) in pairs])

    return run


def wanted(product):
    w = np.float64(product.w)[product.first :]
    x = [np.float64(y).reshape(y.shape[-2:]) for y in product.x]
    pairs = list(zip(x, w[: len(x)], strict=True))
    return [y @ v if product.tall else v @ y for y, v in pairs]


def check(found, products, rtol=1e-5):
    for parts, product in zip(found, products, strict=True):
        for part, x, want in zip(parts, product.x, wanted(product), strict=True):
            assert part.shape[:-2] == x.shape[:-2]
            assert part.dtype == product.dtype
            got = np.asarray(part).reshape(part.shape[-2:])
            np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("stack", [(), (1,)])
@pytest.mark.parametrize("counts", [(1, 1), (3, 20), (1, 2)])
@pytest.mark.parametrize("way", [lambda f: f, jax.jit])
def test_each_array_meets_its_own_matrix(way, counts, stack):
    products = todo(counts, stack)

    check(way(of_arrays(products))(arrays(products)), products)


def test_a_stack_keeps_its_axes():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, 10, 4)), rng.normal(size=(2, 3, 4, 2))
    product = Product([jnp.asarray(x)], jnp.asarray(w), 0, tall=True, dtype="float64")

    ((found,),) = jax.jit(of_arrays([product]))(arrays([product]))

    np.testing.assert_allclose(found, x @ w, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_dtype_of_the_products_is_as_asked(dtype):
    products = [x._replace(dtype=dtype) for x in todo(dtype="float64")]

    found = multiply.multiply(products)

    check(found, products, rtol=1e-2 if dtype == "bfloat16" else 1e-12)


def test_a_mapped_axis_stays_apart():
    products = todo()
    given = jax.tree.map(lambda x: jnp.stack([x, -2 * x]), arrays(products))

    found = jax.jit(jax.vmap(of_arrays(products)))(given)

    # Both factors of a product change: -2 by -2.
    for i, factor in enumerate((1, 4)):
        rows = jax.tree.map(lambda x, i=i, f=factor: x[i] / f, found)
        check(rows, products)


@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
def test_the_derivative_is_that_of_the_products(mode):
    (product, *_) = todo((2, 2), dtype="float64")
    product = product._replace(dtype="float64")
    weight = np.random.default_rng(1).normal(size=(30, 4))

    def total(x):
        return sum(
            (y * weight).sum() for y in multiply.multiply([product._replace(x=x)])[0]
        )

    slopes = mode(total)(list(product.x))

    for slope, w in zip(slopes, np.asarray(product.w), strict=False):
        np.testing.assert_allclose(slope, weight @ w.T, rtol=1e-6)


def lowered(products, platform="cuda"):
    given = arrays(products)
    traced = jax.jit(of_arrays(products)).trace(given)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_kernels_join_multiply_and_divide(dtype):
    with as_on("gpu"):
        text = lowered(todo((34, 68), factory=shape_of(dtype)))

    # A join and a division for each of two sizes, and a product for each shape.
    assert text.count(KERNEL) == 2 + 2 + 4
    assert "stablehlo.concatenate" not in text
    assert "stablehlo.dot_general" not in text


def shape_of(dtype):
    return lambda *shape: jax.ShapeDtypeStruct(shape, dtype)


def test_on_a_gpu_float64_is_multiplied_by_the_library():
    with as_on("gpu"):
        text = lowered(todo((34, 68), factory=shape_of("float64")))

    assert text.count(KERNEL) == 2 + 2
    # Pieces of 34: one and two, of `a` and of `b`.
    assert text.count("stablehlo.dot_general") == 2 * (1 + 2)


def test_a_program_for_a_gpu_lowered_elsewhere_has_no_kernels():
    assert KERNEL not in lowered(todo((34, 68)))


def test_a_single_array_may_have_a_single_matrix():
    x, w = np.arange(12.0).reshape(4, 3), np.arange(6.0).reshape(3, 2)
    product = Product([jnp.asarray(x)], jnp.asarray(w), 0, tall=True, dtype="float64")

    ((found,),) = jax.jit(of_arrays([product]))(arrays([product]))

    np.testing.assert_allclose(found, x @ w)


def test_stacks_of_one_shape_are_multiplied_by_kernels_too():
    def stacked(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    x, w = [stacked(2, 30, 5)] * 3, stacked(6, 5, 5)
    product = Product(x, w, 0, tall=True, dtype="float32")

    with as_on("gpu"):
        shapes = jax.eval_shape(of_arrays([product]), arrays([product]))
        text = lowered([product])

    assert [y.shape for y in shapes[0]] == [(2, 30, 5)] * 3
    assert text.count(KERNEL) == 3


@pytest.mark.user_defaults
def test_a_dtype_that_jax_does_not_have_is_the_one_it_has():
    x, w = jnp.ones((4, 3)), jnp.ones((3, 2))
    product = Product([x], w, 0, tall=True, dtype="float64")

    ((found,),) = multiply.multiply([product])

    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.full((4, 2), 3.0))


def test_a_matrix_in_float64_is_not_rounded_before():
    # Of 1 + 1e-9 float32 keeps nothing.
    x = jnp.asarray([[1.0, -1.0]], np.float32)
    w = jnp.asarray([[[1 + 1e-9], [1.0]]])
    product = Product([x], w, 0, tall=True, dtype="float32")

    ((found,),) = multiply.multiply([product])

    np.testing.assert_allclose(found, [[1e-9]], rtol=1e-6)
