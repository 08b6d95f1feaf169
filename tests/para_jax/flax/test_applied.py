import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import para_jax
from para_jax.flax import linen


@pytest.fixture
def draw():
    generator = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(generator.normal(size=shape))


@pytest.fixture
def pair(draw):
    """Return an adapter of a kernel `[m, n]`."""
    return lambda m, r, n, scale=1.0: para_jax.Adapter(
        draw(m, r), draw(r, n), scale=scale
    )


def error(message):
    return pytest.raises(ValueError, match=message)


F64 = {"param_dtype": float}


class Mixed(nn.Module):
    """Combine every kind of layer, for 4 x 5 pixels of 3 channels, and 2 words."""

    @nn.compact
    def __call__(self, image, words):
        x = nn.Conv(4, (3, 2), strides=(2, 1), **F64, name="conv")(image)
        x = jnp.tanh(x).reshape(x.shape[0], -1, 4)
        x = jnp.concat([x, nn.Embed(11, 4, **F64, name="embed")(words)], axis=1)
        attention = nn.MultiHeadDotProductAttention(
            2, qkv_features=6, **F64, name="attention"
        )
        x = attention(x)
        x = nn.DenseGeneral((3, 2), axis=(-1, 1), **F64, name="general")(x)
        x = nn.Einsum((2, 3, 5), "bfd,dfk->bk", **F64, name="einsum")(x)
        return Last(name="last")(x)


class Last(nn.Module):
    def setup(self):
        self.dense = nn.Dense(7, **F64)
        self.plain = nn.Dense(3, **F64)

    def __call__(self, x):
        return self.plain(jnp.tanh(self.dense(x)))


# By layer: its kernel's shape, the axes of `m`, the axes of `n`.
KERNELS = {
    "conv": ((3, 2, 3, 4), (0, 1, 2), (3,)),
    "embed": ((11, 4), (0,), (1,)),
    "attention/query": ((4, 2, 3), (0,), (1, 2)),
    "attention/value": ((4, 2, 3), (0,), (1, 2)),
    "attention/out": ((2, 3, 4), (0, 1), (2,)),
    "general": ((12, 4, 3, 2), (0, 1), (2, 3)),  # Flax sorts `axis`.
    "einsum": ((2, 3, 5), (0, 1), (2,)),
    "last/dense": ((5, 7), (0,), (1,)),
}
RANKS = dict(zip(KERNELS, (2, 3, 1, 4, 2, 3, 1, 2), strict=True))


@pytest.fixture
def inputs(draw):
    return draw(3, 4, 5, 3), np.array([[1, 10], [0, 5], [5, 5]])


@pytest.fixture
def params(draw, inputs):
    shapes = jax.eval_shape(Mixed().init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda x: draw(*x.shape), shapes)


@pytest.fixture
def adapters(pair):
    def size(shape, axes):
        return int(np.prod([shape[i] for i in axes]))

    return {
        path: pair(size(shape, m), RANKS[path], size(shape, n), scale=0.5)
        for path, (shape, m, n) in KERNELS.items()
    }


def merged(params, adapters, xp=np):
    """Return params with the updates in their kernels."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    for path, x in adapters.items():
        shape = KERNELS[path][0]
        name = f"{path}/{'embedding' if path == 'embed' else 'kernel'}"
        flat[name] = flat[name] + x.scale * xp.reshape(x.a @ x.b, shape)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def run(params, adapters, inputs):
    with linen.applied(adapters):
        return Mixed().apply({"params": params}, *inputs)


def test_layers_of_every_kind_act_as_if_the_updates_were_in_their_kernels(
    params, adapters, inputs
):
    got = jax.jit(run)(params, adapters, inputs)

    want = Mixed().apply({"params": merged(params, adapters)}, *inputs)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", KERNELS)
def test_each_layer_uses_its_own_adapter(params, adapters, inputs, path):
    one = {path: adapters[path]}

    got = run(params, one, inputs)

    want = Mixed().apply({"params": merged(params, one)}, *inputs)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    plain = Mixed().apply({"params": params}, *inputs)
    assert not np.allclose(got, plain, atol=1e-3)


def test_gradients_of_the_adapters_are_those_through_the_kernels(
    params, adapters, inputs
):
    def loss(adapters):
        return jnp.sin(run(params, adapters, inputs)).sum()

    def expected(adapters):
        changed = merged(params, adapters, xp=jnp)
        return jnp.sin(Mixed().apply({"params": changed}, *inputs)).sum()

    got, want = jax.jit(jax.grad(loss))(adapters), jax.jit(jax.grad(expected))(adapters)

    assert got.keys() == adapters.keys()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-8), got, want
    )


def test_children_of_the_same_ranks_share_a_compiled_program(params, adapters, inputs):
    traces = []

    @jax.jit
    def step(params, adapters):
        traces.append(1)
        return run(params, adapters, inputs)

    first = step(params, adapters)
    second = step(params, jax.tree.map(lambda x: 2 * x, adapters))

    assert len(traces) == 1
    assert not np.allclose(first, second)


def test_the_model_is_untouched_outside_of_the_context(params, adapters, inputs):
    before = Mixed().apply({"params": params}, *inputs)
    run(params, adapters, inputs)

    after = Mixed().apply({"params": params}, *inputs)

    np.testing.assert_array_equal(before, after)


def test_initialising_inside_the_context_makes_the_same_variables(adapters, inputs):
    want = jax.eval_shape(Mixed().init, jax.random.key(0), *inputs)

    with linen.applied(adapters):
        got = jax.eval_shape(Mixed().init, jax.random.key(0), *inputs)

    assert got == want


class Custom(nn.Dense):
    """A user's own layer, called twice by Flax: by itself and by `super()`."""

    def __call__(self, inputs):
        return 3 * super().__call__(inputs)


class Wrapped(nn.Module):
    layer: type[nn.Dense]

    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None))
        options = {"use_bias": False, "kernel_init": init, "name": "q"} | F64
        return self.layer(6, **options)(inputs=x)


@pytest.mark.parametrize(
    ("layer", "times"),
    [(nn.Dense, 1), (nn.remat(nn.Dense), 1), (linen.Dense, 1), (Custom, 3)],
)
def test_an_adapter_is_added_once_to_a_subclass(draw, pair, layer, times):
    model, x, adapters = Wrapped(layer), draw(2, 8), {"q": pair(8, 2, 6)}
    variables = model.init(jax.random.key(0), x)  # The kernel is boxed.

    with linen.applied(adapters):
        got = model.apply(variables, x)

    kernel = np.asarray(nn.unbox(variables)["params"]["q"]["kernel"])
    want = x @ (times * kernel + np.asarray(adapters["q"].a @ adapters["q"].b))
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-6)


def test_no_adapters_are_no_error(params, inputs):
    got = run(params, {}, inputs)

    np.testing.assert_array_equal(got, Mixed().apply({"params": params}, *inputs))


def test_an_adapter_that_no_layer_uses_is_refused(params, adapters, pair, inputs):
    adapters |= {"attention/kye": pair(4, 2, 6)}

    with error(r"'attention/kye' was used by no layer.*'attention/key'"):
        jax.jit(run)(params, adapters, inputs)


def test_a_model_compiled_outside_of_the_context_is_noticed(params, adapters, inputs):
    model = jax.jit(Mixed().apply)
    model({"params": params}, *inputs)

    with error("used by no layer.*compiled before, enter"), linen.applied(adapters):
        model({"params": params}, *inputs)


def test_the_error_of_the_model_is_not_hidden_by_unused_adapters(pair):
    with pytest.raises(ZeroDivisionError), linen.applied({"q": pair(8, 2, 6)}):
        1 / 0  # noqa: B018


@pytest.mark.parametrize("path", KERNELS)
def test_factors_that_do_not_fit_are_refused(params, adapters, inputs, path):
    x = adapters[path]
    m, n = x.a.shape[0], x.b.shape[1]
    wrong = para_jax.Adapter(jnp.ones((m + 1, 2)), x.b)

    with error(rf"'{path}' does not fit.*\[{m}, r\], \[r, {n}\]"):
        run(params, adapters | {path: wrong}, inputs)


@pytest.mark.parametrize(
    ("layer", "x", "why"),
    [
        (nn.LayerNorm(), (2, 4), "'layers_0', a LayerNorm"),
        (nn.Conv(4, (3,), feature_group_count=2), (2, 5, 4), "a Conv: .*groups"),
        (
            nn.Conv(4, (3,), mask=np.ones((3, 4, 4), np.float32)),
            (2, 5, 4),
            "a Conv: .*mask",
        ),
        (nn.ConvTranspose(4, (3,)), (2, 5, 4), "a ConvTranspose"),
        (nn.ConvLocal(4, (3,)), (2, 5, 4), "a ConvLocal"),
        (nn.DenseGeneral(4, batch_dims=(0,)), (2, 4), "batch axes.*batch_dims"),
        (nn.Einsum((2, 4, 3), "bd,bdf->bf"), (2, 4), "batch axis 'b'"),
    ],
)
def test_layers_without_a_low_rank_form_are_refused_by_name(draw, pair, layer, x, why):
    model, x = nn.Sequential([layer]), draw(*x).astype(np.float32)
    variables = model.init(jax.random.key(0), x)

    with error(why), linen.applied({"layers_0": pair(4, 2, 4)}):
        model.apply(variables, x)


class Tied(nn.Module):
    @nn.compact
    def __call__(self, words):
        embed = nn.Embed(11, 4, name="embed")
        return embed.attend(embed(words))


def test_an_embedding_that_also_computes_logits_is_refused(pair):
    words = np.array([1, 2])
    variables = Tied().init(jax.random.key(0), words)

    with error(r"'embed', a Embed.*`attend`"), linen.applied({"embed": pair(11, 2, 4)}):
        Tied().apply(variables, words)


class Layers(nn.Module):
    """Run three layers of one kernel each, or the same layer three times."""

    shared: bool

    @nn.compact
    def __call__(self, x):
        def block(layer, x, _):
            return layer(jnp.tanh(x)), None

        how = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        if self.shared:
            how = {"variable_broadcast": "params"}
        scan = nn.scan(block, **how)
        return scan(nn.Dense(4, **F64, name="dense"), x, jnp.arange(3))[0]


@pytest.mark.parametrize("stack", [(), (3,)])
def test_a_stack_of_layers_is_refused_and_the_remedy_named(draw, stack):
    model, x = Layers(shared=False), draw(2, 4)
    variables = model.init(jax.random.key(0), x)
    adapter = para_jax.Adapter(draw(*stack, 4, 2), draw(*stack, 2, 4))

    with (
        error(r"'dense' is a stack.*\(3, 4, 4\).*para_jax.flax.linen.Dense"),
        linen.applied({"dense": adapter}),
    ):
        model.apply(variables, x)


def test_a_layer_that_is_scanned_with_itself_takes_one_adapter(draw, pair):
    model, x, adapter = Layers(shared=True), draw(2, 4), pair(4, 2, 4)
    variables = {"params": {"dense": {"kernel": draw(4, 4), "bias": np.zeros(4)}}}

    with linen.applied({"dense": adapter}):
        got = model.apply(variables, x)

    kernel = np.asarray(variables["params"]["dense"]["kernel"])
    want = np.asarray(x)
    for _ in range(3):
        want = np.tanh(want) @ (kernel + np.asarray(adapter.a @ adapter.b))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_every_model_in_a_context_is_checked_by_itself(draw, pair):
    stacked, other, x = Layers(shared=False), nn.Sequential([nn.tanh]), draw(2, 4)
    variables = stacked.init(jax.random.key(0), x)

    with error("'dense' is a stack"), linen.applied({"dense": pair(4, 2, 4)}):
        other.apply({}, x)
        stacked.apply(variables, x)
