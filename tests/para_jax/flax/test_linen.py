import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import para_jax
from para_jax.flax import linen

SHAPES = [(8, 6, 3), (6, 8, 1), (5, 5, 7)]  # (m, n, r); the last has r > m

# equation, input, kernel, the kernel's axes as m and as n
EINSUMS = [
    ("BTD,DNH->BTNH", (2, 3, 5), (5, 2, 7), "D,NH"),
    ("BTNH,NHD->BTD", (2, 3, 2, 7), (2, 7, 5), "NH,D"),
    ("BTD,NDH->BTNH", (2, 3, 5), (4, 5, 3), "D,NH"),
    ("BSD,CKDH->CBSKH", (3, 2, 5), (2, 3, 5, 4), "D,CKH"),
    ("... F, N H F -> ... N H", (2, 3, 5), (2, 7, 5), "F,NH"),
    ("...H,HF->...F", (4, 5), (5, 3), "H,F"),
]


@pytest.fixture
def draw():
    generator = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(generator.normal(size=shape))


def product(a, b):
    return np.asarray(a, np.float64) @ np.asarray(b, np.float64)


def unflattened(delta, kernel, equation, parts):
    """Return `delta: [m, n]` with the kernel's axes, by index arithmetic."""
    names = equation.replace(" ", "").split("->")[0].split(",")[1]
    first, rest = parts.split(",")
    sizes = dict(zip(names, kernel, strict=True))
    got = np.empty(kernel)
    for index in np.ndindex(kernel):
        at = dict(zip(names, index, strict=True))
        i = j = 0
        for name in first:
            i = i * sizes[name] + at[name]
        for name in rest:
            j = j * sizes[name] + at[name]
        got[index] = delta[i, j]
    return got


def error(message):
    return pytest.raises(ValueError, match=message)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_dense_adapter_acts_as_if_its_product_were_in_the_kernel(
    draw, m, n, r, use_bias
):
    params = {"kernel": draw(m, n)} | ({"bias": draw(n)} if use_bias else {})
    a, b, x = draw(m, r), draw(r, n), draw(2, 4, m)
    layer = linen.Dense(n, use_bias=use_bias)

    got = jax.jit(layer.apply)({"params": params, "lora": {"a": a, "b": b}}, x)

    merged = params | {"kernel": params["kernel"] + product(a, b)}
    want = nn.Dense(n, use_bias=use_bias).apply({"params": merged}, x)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("equation", "inputs", "kernel", "parts"), EINSUMS)
def test_an_einsum_adapter_acts_as_if_its_product_were_in_the_kernel(
    draw, equation, inputs, kernel, parts
):
    names = equation.replace(" ", "").split("->")[0].split(",")[1]
    m, n = (
        int(np.prod([kernel[names.index(i)] for i in part]))
        for part in parts.split(",")
    )
    a, b, x = draw(m, 3), draw(3, n), draw(*inputs)
    init = nn.Einsum(kernel, equation, param_dtype=x.dtype).init
    shapes = jax.eval_shape(init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: draw(*leaf.shape), shapes)

    variables = {"params": params, "lora": {"a": a, "b": b}}
    got = linen.Einsum(kernel, equation).apply(variables, x)
    called = linen.Einsum(kernel).apply(variables, x, equation)

    delta = unflattened(product(a, b), kernel, equation, parts)
    merged = params | {"kernel": params["kernel"] + delta}
    want = nn.Einsum(kernel, equation).apply({"params": merged}, x)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(called, got)


@pytest.mark.parametrize(
    ("ours", "theirs", "x"),
    [
        (linen.Dense(6), nn.Dense(6), (3, 8)),
        (linen.Dense(6, use_bias=False), nn.Dense(6, use_bias=False), (8,)),
        (
            linen.Einsum((8, 2, 3), "BD,DNH->BNH"),
            nn.Einsum((8, 2, 3), "BD,DNH->BNH"),
            (3, 8),
        ),
    ],
)
def test_without_an_adapter_it_is_the_layer_of_flax(draw, ours, theirs, x):
    x = draw(*x).astype(np.float32)

    variables = ours.init(jax.random.key(1), x)

    jax.tree.map(
        np.testing.assert_array_equal, variables, theirs.init(jax.random.key(1), x)
    )
    np.testing.assert_array_equal(ours.apply(variables, x), theirs.apply(variables, x))


def test_initialisation_makes_parameters_only(draw):
    variables = linen.Dense(6, param_dtype=np.float64).init(
        jax.random.key(0), draw(3, 8)
    )

    got = jax.tree.map(lambda x: (x.shape, x.dtype.name), variables)

    want = {"kernel": ((8, 6), "float64"), "bias": ((6,), "float64")}
    assert got == {"params": want}


@pytest.mark.user_defaults
@pytest.mark.parametrize(
    ("x", "kernel", "lora", "dtype", "want"),
    [
        ("bfloat16", "bfloat16", "float32", None, "bfloat16"),
        ("float32", "float32", "bfloat16", None, "float32"),
        ("float32", "float32", "float32", jnp.bfloat16, "bfloat16"),
    ],
)
def test_an_adapter_does_not_change_the_dtype_of_the_output(
    draw, x, kernel, lora, dtype, want
):
    params = {"kernel": draw(8, 6).astype(kernel)}
    factors = {"a": draw(8, 2).astype(lora), "b": draw(2, 6).astype(lora)}
    x = draw(4, 8).astype(x)

    got = linen.Dense(6, use_bias=False, dtype=dtype).apply(
        {"params": params, "lora": factors}, x
    )

    assert got.dtype == want
    exact = np.float64(x) @ (
        np.float64(params["kernel"]) + product(factors["a"], factors["b"])
    )
    np.testing.assert_allclose(np.float64(got), exact, rtol=0.05, atol=0.2)


def test_the_gradient_of_the_adapter_leaves_the_kernel_alone(draw):
    params, x = {"kernel": draw(8, 6), "bias": draw(6)}, draw(3, 8)
    lora = {"a": draw(8, 2), "b": np.zeros((2, 6))}

    def loss(lora):
        return linen.Dense(6).apply({"params": params, "lora": lora}, x).sum()

    got = jax.grad(loss)(lora)

    assert got.keys() == {"a", "b"}
    np.testing.assert_array_equal(got["a"], np.zeros((8, 2)))
    want = np.repeat((x @ lora["a"]).sum(0)[:, None], 6, axis=1)
    np.testing.assert_allclose(got["b"], want, rtol=1e-10)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(linen.Dense(5, name="dense")(x)), None


@pytest.mark.parametrize(("params_axis", "lora_axis"), [(0, 0), (1, 1), (1, 0)])
def test_stacked_adapters_are_scanned_with_their_layers(draw, params_axis, lora_axis):
    axes = {"params": params_axis, "lora": lora_axis}
    layers = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)
    kernel, bias, x = draw(3, 5, 5), draw(3, 5), draw(2, 5)
    adapter = para_jax.Adapter(draw(3, 5, 2), draw(3, 2, 5), scale=0.5)
    lora = para_jax.to_params({"dense": adapter})

    def stacked(tree, axis):
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), tree)

    params = stacked({"dense": {"kernel": kernel, "bias": bias}}, params_axis)
    variables = {"params": params, "lora": stacked(lora, lora_axis)}

    got, _ = layers().apply(variables, x, None)

    want = np.asarray(x)
    for i in range(3):
        delta = 0.5 * product(adapter.a[i], adapter.b[i])
        want = np.tanh(want @ (kernel[i] + delta) + bias[i][None])
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
    plain, _ = layers().apply({"params": params}, x, None)
    assert not np.allclose(got, plain, atol=1e-3)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = jnp.tanh(linen.Dense(5 + i, param_dtype=x.dtype, name=f"layer_{i}")(x))
        return x


def test_a_compressed_child_runs_in_the_model_of_its_parent(draw):
    model, x = Model(), draw(2, 4)
    params = model.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: draw(*leaf.shape), params)
    sizes = {"layer_0": 4, "layer_1": 5, "layer_2": 6}
    parent = {
        path: para_jax.Adapter(draw(m, 3) * m**2, draw(3, m + 1))
        for path, m in sizes.items()
    }
    child = para_jax.compress(parent, para_jax.Gamma(0.5)).adapters
    assert {x.rank for x in child.values()} != {3}  # Ragged.

    got = model.apply({"params": params, "lora": para_jax.to_params(child)}, x)

    want = np.asarray(x)
    for path in sizes:
        kernel = np.asarray(params[path]["kernel"])
        if path in child:
            kernel = kernel + product(child[path].a, child[path].b)
        want = np.tanh(want @ kernel + np.asarray(params[path]["bias"])[None])
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("a", "b"), [((6, 2), (2, 8)), ((8, 2), (3, 6)), ((8, 2), (2, 1)), ((3, 8, 2),) * 2]
)
def test_factors_that_do_not_fit_are_refused_where_they_are_used(draw, a, b):
    variables = {
        "params": {"layer_0": {"kernel": draw(8, 5), "bias": draw(5)}},
        "lora": {"layer_0": {"a": draw(*a), "b": draw(*b)}},
    }

    with error(r"'layer_0' does not fit.*\[8, r\], \[r, 5\]"):
        Model().apply(variables, draw(2, 8))


def test_a_factor_alone_is_refused(draw):
    variables = {"params": {"kernel": draw(8, 6)}, "lora": {"b": draw(2, 6)}}

    with error(r"has the factor 'b' alone.*to_params"):
        linen.Dense(6, use_bias=False).apply(variables, draw(2, 8))


@pytest.mark.parametrize(
    ("equation", "x", "kernel", "why"),
    [
        ("EBD,EDF->EBF", (3, 2, 5), (3, 5, 4), "the batch axis 'E'"),
        ("BD,DFG->BF", (2, 5), (5, 4, 3), "'G' is in the kernel alone"),
        ("BD,DD->B", (2, 5), (5, 5), "'D' is in the kernel twice"),
        ("BD,D...->B...", (2, 5), (5, 4), "the kernel has an ellipsis"),
    ],
)
def test_an_einsum_that_is_no_matrix_product_is_refused(draw, equation, x, kernel, why):
    layer = linen.Einsum(kernel, equation, use_bias=False)
    variables = {"params": {"kernel": draw(*kernel)}}
    x = draw(*x)
    layer.apply(variables, x)  # Flax takes it.

    with error(f"einsum '{equation}'.*{why}"):
        layer.apply(variables | {"lora": {"a": draw(5, 2), "b": draw(2, 4)}}, x)


def test_an_adapter_under_a_wrong_path_is_refused(draw):
    params = {"block": {"query": {"kernel": draw(8, 6)}}}
    lora = {"block": {"key": {"a": draw(8, 2), "b": draw(2, 6)}}}

    with error(r"'block/key' belongs to no.*'block/query'"):
        linen.check(lora, params)


@pytest.mark.parametrize(
    "shapes",
    [
        {"a": (6, 2), "b": (2, 8)},  # Transposed.
        {"a": (8, 2), "b": (3, 6)},  # Two ranks.
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_the_model_runs(draw, shapes):
    params = {"query": {"kernel": draw(8, 6)}}
    lora = {"query": {name: draw(*shape) for name, shape in shapes.items()}}

    with error(r"'query' does not fit.*\[8, r\], \[r, 6\]"):
        linen.check(lora, params)


def test_half_an_adapter_is_refused_before_the_model_runs(draw):
    with error("'query' has one factor alone"):
        linen.check({"query": {"a": draw(8, 2)}}, {"query": {"kernel": draw(8, 6)}})


def test_adapters_of_every_layer_pass_the_check(draw):
    params = {
        "query": {"kernel": draw(8, 6), "bias": draw(6)},
        "heads": {"kernel": nn.Partitioned(draw(8, 2, 3), (None, None, None))},
    }
    params = flax.core.freeze(params)

    lora = {path: {"a": draw(8, 2), "b": draw(2, 6)} for path in params}

    linen.check(lora, params)

    for path in params:  # It did look at them.
        with error(f"'{path}s' belongs to no layer"):
            linen.check({f"{path}s": lora[path]}, params)


def test_factors_of_another_dtype_are_promoted_as_the_layer_says(draw):
    """Types are strict here: without `dtype`, no two of them would mix."""
    params = {"kernel": draw(8, 6).astype(np.float32)}
    a, b = (draw(*shape).astype(jnp.bfloat16) for shape in ((8, 2), (2, 6)))
    layer, x = linen.Dense(6, use_bias=False, dtype=float), draw(4, 8)

    got = layer.apply({"params": params, "lora": {"a": a, "b": b}}, x)

    want = np.asarray(x) @ (np.float64(params["kernel"]) + product(a, b))
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
