"""Test `decompose` against NumPy's float64 SVD of the dense update."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import para_jax

ADAPTER = pathlib.Path(__file__).parents[3] / "train" / "assets" / "minilm-movie-r16"

METHODS = ["qr", "gram"]
PRECISIONS = ["float64", "float32"]
SHAPES = [(8, 6, 3), (6, 8, 3), (5, 5, 1), (4, 9, 6), (9, 4, 6), (8, 6, 5)]
EPS = float(np.finfo(np.float32).eps)


def factors(rng, m, n, r, *, stack=(), grade=None):
    a, b = rng.normal(size=(*stack, m, r)), rng.normal(size=(*stack, r, n))
    if grade is not None:
        a = a * np.geomspace(1, grade, r)
    return a, b


@functools.cache
def adapters():
    """Return one model with all adapters to decompose, for a single program."""
    rng = np.random.default_rng(0)
    result = {}

    def add(name, a, b, *, dtype=np.float32, scale=1.0):
        result[name] = para_jax.Adapter(
            a=a.astype(dtype), b=b.astype(dtype), scale=scale
        )

    for m, n, r in SHAPES:
        add(f"random/{m}-{n}-{r}", *factors(rng, m, n, r))
    add("stacked", *factors(rng, 8, 6, 3, stack=(2, 3)), scale=0.5)
    add("scaled", *factors(rng, 8, 6, 3), scale=32 / 3)
    add("negative", *factors(rng, 8, 6, 3), scale=-2.0)
    add("graded", *factors(rng, 8, 6, 5, grade=1e-5))
    a, b = factors(rng, 8, 6, 5, grade=1e-5)
    add("graded/both", a, b * np.geomspace(1, 1e-2, 5)[:, None])
    add("graded/columns-of-the-update", a[:, ::-1], b)
    a, b = factors(rng, 8, 6, 5)
    a[:, 2:] = a[:, :3]
    add("deficient", a, b)
    b[3:] = 0
    add("deficient/rows", factors(rng, 8, 6, 5)[0], b)
    add("zero/b", *factors(rng, 8, 6, 3)[:1], np.zeros((3, 6)))
    add("zero/both", np.zeros((8, 3)), np.zeros((3, 6)))
    add("zero/scale", *factors(rng, 8, 6, 3), scale=0.0)
    add("half", *factors(rng, 8, 6, 3), dtype=np.float16, scale=2.0)
    add("brain", *factors(rng, 8, 6, 3), dtype=ml_dtypes.bfloat16, scale=2.0)
    add("small", *(1e-6 * x for x in factors(rng, 8, 6, 3)))
    add("tall", *factors(rng, 131, 67, 5))
    return result


NAMES = list(adapters())


@functools.cache
def decomposed(method, precision):
    with jax.enable_x64(precision == "float64"):
        compiled = jax.jit(para_jax.decompose, static_argnames="method")
        return jax.device_get(compiled(adapters(), method=method))


def dense(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * a @ b


def kernels(name, method, precision):
    """Yield the dense update and the Spectrum of each kernel of a stack."""
    adapter, spectrum = adapters()[name], decomposed(method, precision)[name]
    for index in np.ndindex(adapter.stack):
        one = dataclasses.replace(adapter, a=adapter.a[index], b=adapter.b[index])
        parts = {x: getattr(spectrum, x)[index] for x in ("s", "left", "right")}
        yield one, dataclasses.replace(spectrum, **parts)


def pair(adapter, spectrum):
    """Return the balanced factors in float64, from the library's results."""
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return a @ spectrum.left, spectrum.right @ b


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
class TestAgainstTheDenseUpdate:
    def test_singular_values(self, method, precision, name):
        for adapter, got in kernels(name, method, precision):
            want = np.linalg.svd(dense(adapter), compute_uv=False)[: got.s.shape[-1]]
            # Products square the condition number: what is zero is 1e-8 of the largest.
            exact = {"qr": 1e-12, "gram": 1e-7}[method]
            tolerance = exact if precision == "float64" else 1e-5
            np.testing.assert_allclose(got.s, want, rtol=0, atol=tolerance * want[0])
            assert (np.diff(got.s) <= 0).all()

    def test_every_prefix_is_a_best_approximation(self, method, precision, name):
        for adapter, got in kernels(name, method, precision):
            delta = dense(adapter)
            u, s, vt = np.linalg.svd(delta, full_matrices=False)
            a, b = pair(adapter, got)
            norm = np.linalg.norm(delta)
            for k in range(got.s.shape[-1] + 1):
                product = a[:, :k] @ b[:k]
                error = np.linalg.norm(delta - product)
                best = np.linalg.norm(s[k:])
                assert error <= best + 1e-5 * norm
                if 0 < k < len(s) and s[k - 1] - s[k] > 1e-2 * s[0]:
                    want = (u[:, :k] * s[:k]) @ vt[:k]
                    assert np.linalg.norm(product - want) <= 1e-5 * norm

    def test_the_kept_factors_are_balanced_and_orthogonal(
        self, method, precision, name
    ):
        for adapter, got in kernels(name, method, precision):
            # In single precision, what is 1e-4 of the largest is itself known to 1e-3.
            smallest = 1e-2 if precision == "float32" else 10 * EPS
            kept = got.s > smallest * got.s[0]
            a, b = pair(adapter, got)
            a, b = (x[:, kept] / np.sqrt(got.s[kept]) for x in (a, b.T))
            np.testing.assert_allclose(a.T @ a, np.eye(kept.sum()), atol=1e-4)
            np.testing.assert_allclose(b.T @ b, np.eye(kept.sum()), atol=1e-4)

    def test_unresolved_components_are_exactly_zero(self, method, precision, name):
        for adapter, got in kernels(name, method, precision):
            zero = got.s <= adapter.rank * EPS * got.s[0]
            assert not got.left[:, zero].any()
            assert not got.right[zero].any()
            want = np.linalg.svd(dense(adapter), compute_uv=False)[: len(got.s)]
            clear = (want > 2 * adapter.rank * EPS * want[0]) & (want > 0)
            assert not (zero & clear).any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_spectrum_says_what_it_is_of(precision):
    for name, got in decomposed("qr", precision).items():
        adapter = adapters()[name]
        k = min(adapter.inputs, adapter.outputs, adapter.rank)
        assert got.s.shape == (*adapter.stack, k)
        assert got.left.shape == (*adapter.stack, adapter.rank, k)
        assert got.right.shape == (*adapter.stack, k, adapter.rank)
        assert got.shape == (adapter.inputs, adapter.outputs)
        assert got.dtype == adapter.a.dtype.name
        assert got.nominal == k
        assert got.rank == adapter.rank
        assert got.s.dtype == got.left.dtype == got.right.dtype == precision


def test_paths_come_back_in_the_order_they_were_given():
    some = {name: adapters()[name] for name in ("zero/b", "random/8-6-5", "half")}

    assert list(para_jax.decompose(some)) == list(some)


@pytest.mark.parametrize("name", ["graded", "graded/both"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_graded_columns_keep_their_digits(method, precision, name):
    adapter = adapters()[name]
    want = np.linalg.svd(dense(adapter), compute_uv=False)[:5]

    got = decomposed(method, precision)[name].s

    np.testing.assert_allclose(got, want, rtol=1e-9 if precision == "float64" else 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_works_on_its_own_as_under_jit(method):
    some = {name: adapters()[name] for name in ("random/8-6-3", "stacked", "negative")}

    got = para_jax.decompose(some, method=method)

    for name, x in got.items():
        np.testing.assert_allclose(
            x.s, decomposed(method, "float64")[name].s, rtol=1e-12
        )


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_adapters_equals_a_loop(method):
    rng = np.random.default_rng(1)
    both = {
        "x": para_jax.Adapter(*factors(rng, 8, 6, 3, stack=(2,)), scale=2.0),
        "y": para_jax.Adapter(*factors(rng, 9, 4, 5, stack=(2, 3))),
    }

    got = jax.jit(jax.vmap(lambda x: para_jax.decompose(x, method=method)))(both)

    for name, x in both.items():
        want = np.linalg.svd(dense(x), compute_uv=False)[..., : min(x.rank, 4)]
        np.testing.assert_allclose(got[name].s, want, rtol=1e-10)
        product = x.a @ got[name].left @ got[name].right @ x.b
        np.testing.assert_allclose(product, dense(x), atol=1e-10)


@pytest.mark.parametrize("m_n_r", [(8, 6, 3), (5, 7, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_the_singular_values_is_that_of_the_update(method, m_n_r):
    # d s_i / d delta = u_i v_i^T, and delta = scale * a @ b.
    a, b = factors(np.random.default_rng(2), *m_n_r)
    weights = np.arange(1.0, m_n_r[2] + 1)

    def loss(adapter):
        return (
            para_jax.decompose({"x": adapter}, method=method)["x"].s * weights
        ).sum()

    got = jax.jit(jax.grad(loss))(para_jax.Adapter(jnp.asarray(a), jnp.asarray(b), 3.0))

    u, _, vt = np.linalg.svd(3.0 * a @ b, full_matrices=False)
    of_delta = (u[:, : m_n_r[2]] * weights) @ vt[: m_n_r[2]]
    np.testing.assert_allclose(got.a, 3.0 * of_delta @ b.T, atol=1e-8)
    np.testing.assert_allclose(got.b, 3.0 * a.T @ of_delta, atol=1e-8)


def shapes_in(jaxpr):
    """Yield the shape of every value in a jaxpr and in its inner jaxprs."""
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            yield getattr(variable.aval, "shape", ())
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_array_of_the_kernels_size_is_formed(method, precision):
    rng = np.random.default_rng(0)
    model = {
        "x": para_jax.Adapter(*factors(rng, 41, 43, 3)),
        "y": para_jax.Adapter(*factors(rng, 41, 43, 3, stack=(2,))),
        "z": para_jax.Adapter(*factors(rng, 43, 41, 5)),
    }

    with jax.enable_x64(precision == "float64"):
        program = jax.make_jaxpr(lambda x: para_jax.decompose(x, method=method))(model)

    shapes = list(shapes_in(program.jaxpr))
    assert (2, 41, 3) in shapes or (3, 41, 3) in shapes  # The scan looks inside.
    assert any((len(x) >= 2 and set(x) == {3}) or x[-2:] == (3, 3) for x in shapes)
    for shape in shapes:
        assert not {41, 43} <= set(shape), shape
        assert np.prod(shape, dtype=int) < 41 * 43, shape


def real_adapters():
    tensors = safetensors.numpy.load_file(ADAPTER / "adapter_model.safetensors")
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    ends = ".lora_A.weight", ".lora_B.weight"
    return {
        name.removesuffix(ends[0]): para_jax.Adapter(
            a=value.T,
            b=tensors[name.replace(*ends)].T,
            scale=config["lora_alpha"] / config["r"],
        )
        for name, value in tensors.items()
        if name.endswith(ends[0])
    }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_a_trained_adapter(method, precision):
    model = real_adapters()
    chosen = [path for path in model if ".layer.2." in path]

    with jax.enable_x64(precision == "float64"):
        compiled = jax.jit(para_jax.decompose, static_argnames="method")
        got = jax.device_get(compiled(model, method=method))

    assert (len(model), len(chosen)) == (36, 6)
    for path in chosen:
        delta = dense(model[path])
        want = np.linalg.svd(delta, compute_uv=False)
        np.testing.assert_allclose(got[path].s, want[:16], rtol=0, atol=1e-5 * want[0])
        a, b = pair(model[path], got[path])
        error = np.linalg.norm(delta - a[:, :4] @ b[:4])
        np.testing.assert_allclose(error, np.linalg.norm(want[4:]), rtol=1e-5)
        np.testing.assert_allclose(a.T @ a, np.diag(got[path].s), atol=1e-4 * want[0])


def broken(**changes):
    a, b = factors(np.random.default_rng(0), 8, 6, 3)
    return {"mlp/up": dataclasses.replace(para_jax.Adapter(a=a, b=b), **changes)}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            broken(b=np.ones((4, 6))),
            r"'mlp/up': the ranks disagree: a \[8, 3\] has 3, b",
        ),
        (broken(a=np.ones(8)), r"'mlp/up': expected a \[\*stack, m, r\] .* got \[8\]"),
        (
            broken(a=np.ones((2, 8, 3))),
            r"'mlp/up': expected .* \[2, 8, 3\] and \[3, 6\]",
        ),
        (
            broken(a=np.ones((8, 0)), b=np.ones((0, 6))),
            r"'mlp/up': an axis .* is empty. A module of rank 0 is left out",
        ),
        (broken(a=np.ones((8, 3), int)), r"'mlp/up': a is int64, expected floating"),
        (broken(b=np.ones((3, 6), complex)), r"'mlp/up': b is complex128, expected"),
    ],
)
def test_factors_that_do_not_fit_are_refused_by_path(model, message):
    with pytest.raises(ValueError, match=message):
        para_jax.decompose(model)


def test_nothing_decomposes_to_nothing():
    assert para_jax.decompose({}) == {}
