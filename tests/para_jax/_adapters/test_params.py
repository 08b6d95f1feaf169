"""Test adapters as nested params, and back; NumPy computes the expected products."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import para_jax as para
from para_jax._adapters.params import nest, unnest

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
as_users = pytest.mark.parametrize(
    "kind", ["numpy", "jax", pytest.param("jax", marks=pytest.mark.user_defaults)]
)


def adapter(m, n, r, *, scale=1.0, dtype=np.float32, stack=(), seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(*stack, m, r)), rng.normal(size=(*stack, r, n))
    return para.Adapter(a=a.astype(dtype), b=b.astype(dtype), scale=scale)


def test_each_module_gets_a_dict_of_its_own():
    up, q = adapter(8, 6, 3), adapter(5, 9, 2, stack=(4,))

    got = para.to_params({"mlp/up": up, "layers/0/q": q})

    assert jax.tree.map(np.shape, got) == {
        "mlp": {"up": {"a": (8, 3), "b": (3, 6)}},
        "layers": {"0": {"q": {"a": (4, 5, 2), "b": (4, 2, 9)}}},
    }
    assert got["mlp"]["up"]["a"] is up.a
    assert got["mlp"]["up"]["b"] is up.b


@as_users
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [2.0, 1 / 3, -0.7, 0.0])
def test_the_scale_is_folded_in_by_one_rounding(kind, dtype, scale):
    x = adapter(8, 6, 3, scale=scale, dtype=dtype)
    given = x if kind == "numpy" else jax.tree.map(jnp.asarray, x)

    got = para.to_params({"q": given})["q"]

    np.testing.assert_array_equal(got["a"], x.a)
    assert got["b"].dtype == dtype
    want = x.b.astype(np.float64) * scale
    # Rounding the scale itself to half precision would shift a whole module. The
    # added term is float32's own rounding.
    rounding = float(ml_dtypes.finfo(dtype).eps) / 2 + 2e-7
    error = np.abs(np.asarray(got["b"]).astype(np.float64) - want)
    assert (error <= rounding * np.abs(want)).all()


def test_params_can_be_made_while_tracing():
    x = adapter(8, 6, 3, scale=0.5)

    got = jax.jit(lambda x: para.to_params({"mlp/up": x}))(x)

    np.testing.assert_array_equal(got["mlp"]["up"]["b"], x.b / 2)


def test_from_params_inverts_to_params():
    before = {
        "mlp/up": adapter(8, 6, 3, seed=1),
        "mlp": adapter(4, 9, 6, seed=2),  # A module in a module.
        "layers/10/q": adapter(5, 5, 1, stack=(2, 3), seed=3),
        "a": adapter(3, 2, 1, seed=4),  # Named like a factor.
        "b/a": adapter(3, 2, 2, seed=5),
    }

    after = para.from_params(para.to_params(before))

    assert after.keys() == before.keys()
    for path, x in before.items():
        assert after[path].a is x.a
        assert after[path].b is x.b
        assert after[path].scale == 1


def test_from_params_gives_one_scale_to_all_and_passes_over_the_rest():
    q = adapter(8, 6, 3)
    params = {
        "block": {"q": {"a": q.a, "b": q.b, "kernel": np.zeros((8, 6))}},
        "norm": {"scale": np.ones(6)},
        "empty": {},
    }

    got = para.from_params(params, scale=0.25)

    assert got.keys() == {"block/q"}
    assert got["block/q"].scale == 0.25
    assert got["block/q"].a is q.a


@pytest.mark.parametrize("missing", ["a", "b"])
def test_a_factor_alone_is_refused_by_path(missing):
    params = para.to_params({"block/q": adapter(8, 6, 3)})
    del params["block"]["q"][missing]
    there = {"a": "b", "b": "a"}[missing]

    with pytest.raises(ValueError, match=f"'block/q' has the factor '{there}' alone"):
        para.from_params(params)


@pytest.mark.parametrize("paths", [["mlp", "mlp/a"], ["mlp/a", "mlp"]])
def test_a_path_that_ends_in_a_factor_of_another_is_refused(paths):
    with pytest.raises(ValueError, match="'mlp/a"):
        para.to_params({path: adapter(8, 6, 3) for path in paths})


def test_nothing_gives_nothing():
    assert para.to_params({}) == {}
    assert para.from_params({}) == {}
    assert nest({}) == unnest({}) == {}


def test_unnest_inverts_nest():
    flat = {"a/b/c": 1, "a/b/d": 2, "a/e": 3, "f": 4, "a.b/c d": 5, "ü/0": 6}

    nested = nest(flat)

    assert nested == {
        "a": {"b": {"c": 1, "d": 2}, "e": 3},
        "f": 4,
        "a.b": {"c d": 5},
        "ü": {"0": 6},
    }
    assert unnest(nested) == flat


@pytest.mark.parametrize("paths", [["a", "a/b"], ["a/b/c", "a/b"], ["a/b", "a/b/c/d"]])
def test_a_value_cannot_also_be_a_parent(paths):
    with pytest.raises(ValueError, match=r"lies below another value|is taken"):
        nest(dict.fromkeys(paths, 1))
