import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import para_jax
from para_jax.flax import nnx as para_nnx

# By layer: its kernel's shape, the axes of `m`, the axes of `n`.
KERNELS = {
    "layers/0": ((5, 6), (0,), (1,)),
    "layers/1": ((6, 4), (0,), (1,)),
    "attention/query": ((4, 2, 3), (0,), (1, 2)),
    "attention/key": ((4, 2, 3), (0,), (1, 2)),
    "attention/value": ((4, 2, 3), (0,), (1, 2)),
    "attention/out": ((2, 3, 4), (0, 1), (2,)),
    "einsum": ((2, 4, 3), (1,), (0, 2)),  # No transposition of [m, n].
    "general": ((2, 3, 5, 2), (0, 1), (2, 3)),
}
RANKS = dict(zip(KERNELS, (2, 3, 1, 4, 2, 3, 1, 2), strict=True))


def attend(query, key, value, **_):
    """Compute attention by plain products: JAX's own promotes float64 with float32."""
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


class Model(nnx.Module):
    def __init__(self, rngs):
        def options():
            return {"param_dtype": float, "rngs": rngs}

        self.layers = nnx.List(
            [nnx.Linear(5, 6, **options()), nnx.Linear(6, 4, **options())]
        )
        self.attention = nnx.MultiHeadAttention(
            2, 4, qkv_features=6, decode=False, attention_fn=attend, **options()
        )
        self.einsum = nnx.Einsum("btd,ndh->btnh", (2, 4, 3), (2, 3), **options())
        self.general = nnx.LinearGeneral((2, 3), (5, 2), axis=(-2, -1), **options())
        self.prelu = nnx.PReLU(param_dtype=float)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        x = self.general(jnp.tanh(self.einsum(self.attention(x))))
        return self.prelu(x.reshape(*x.shape[:2], 10))


@pytest.fixture
def draw():
    generator = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(generator.normal(size=shape))


@pytest.fixture
def model():
    return Model(nnx.Rngs(0))


@pytest.fixture
def x(draw):
    return draw(2, 3, 5)


@pytest.fixture
def adapters(draw):
    return {
        path: para_jax.Adapter(
            draw(int(np.prod([shape[i] for i in m])), RANKS[path]),
            draw(RANKS[path], int(np.prod([shape[i] for i in n]))),
        )
        for path, (shape, m, n) in KERNELS.items()
    }


def error(message):
    return pytest.raises(ValueError, match=message)


def spec(tree):
    flat = nnx.to_flat_state(tree)
    return {"/".join(map(str, path)): leaf.shape for path, leaf in flat}


def values(tree):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(tree))


def with_updates(model, adapters):
    """Return a copy of `model` with the updates in its kernels."""
    copy = nnx.clone(model)
    modules = {"/".join(map(str, p)): m for p, m in nnx.iter_modules(copy)}
    for path, x in adapters.items():
        shape, m, n = KERNELS[path]
        delta = x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)
        delta = delta.reshape([shape[i] for i in (*m, *n)])
        delta = delta.transpose(np.argsort((*m, *n)))
        modules[path].kernel[...] = modules[path].kernel[...] + delta
    return copy


def test_an_adapted_model_acts_as_if_the_updates_were_in_its_kernels(
    model, adapters, x
):
    plain, want = model(x), with_updates(model, adapters)(x)

    para_nnx.attach(model, adapters)

    np.testing.assert_allclose(model(x), want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(model, x), want, atol=1e-9)
    assert not np.allclose(plain, want, atol=1e-3)


@pytest.mark.parametrize("path", KERNELS)
def test_each_layer_uses_its_own_adapter(model, adapters, x, path):
    one, plain = {path: adapters[path]}, model(x)
    want = with_updates(model, one)(x)

    para_nnx.attach(model, one)

    np.testing.assert_allclose(model(x), want, rtol=1e-9, atol=1e-9)
    assert not np.allclose(want, plain, atol=1e-3) or path == "attention/key"


def test_attaching_adds_factors_of_ragged_ranks_beside_the_kernels(model, adapters):
    before = spec(nnx.state(model))

    para_nnx.attach(model, adapters)

    factors = {f"{path}/lora_a": x.a.shape for path, x in adapters.items()}
    factors |= {f"{path}/lora_b": x.b.shape for path, x in adapters.items()}
    assert spec(nnx.state(model, nnx.LoRAParam)) == factors
    assert spec(nnx.state(model)) == before | factors


def test_detaching_gives_the_adapters_and_the_model_back(model, adapters, x):
    modules = dict(nnx.iter_modules(model))
    types = {path: type(module) for path, module in modules.items()}
    graph, before = nnx.split(model)
    want = model(x)
    para_nnx.attach(model, adapters)

    got = para_nnx.detach(model)

    assert got.keys() == adapters.keys()
    for path, adapter in adapters.items():
        np.testing.assert_array_equal(got[path].a, adapter.a)
        np.testing.assert_array_equal(got[path].b, adapter.b)
        assert got[path].scale == 1
    after = dict(nnx.iter_modules(model))
    assert all(after[path] is module for path, module in modules.items())
    assert {path: type(module) for path, module in after.items()} == types
    assert nnx.split(model)[0] == graph
    jax.tree.map(
        np.testing.assert_array_equal, values(nnx.state(model)), values(before)
    )
    np.testing.assert_array_equal(model(x), want)
    assert para_nnx.detach(model) == {}


def test_merging_puts_the_updates_into_the_kernels(model, adapters, x):
    want = with_updates(model, adapters)
    graph = nnx.graphdef(model)
    para_nnx.attach(model, adapters)

    para_nnx.merge(model)

    assert nnx.graphdef(model) == graph
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, atol=1e-12),
        values(nnx.state(model)),
        values(nnx.state(want)),
    )
    np.testing.assert_allclose(model(x), want(x), atol=1e-9)


@pytest.mark.user_defaults
def test_merging_rounds_once(draw):
    model = nnx.Linear(5, 7, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    a, b = (draw(*shape).astype(jnp.bfloat16) for shape in ((5, 3), (3, 7)))
    wrapper = nnx.Sequential(model)
    before = np.float64(model.kernel[...])
    para_nnx.attach(wrapper, {"layers/0": para_jax.Adapter(a, b)})

    para_nnx.merge(wrapper)

    want = (before + np.float64(a) @ np.float64(b)).astype(jnp.bfloat16)
    assert model.kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(model.kernel[...]), want)


def test_scales_are_folded_in(model, adapters, x):
    scaled = {
        path: para_jax.Adapter(x.a, x.b, scale=0.5) for path, x in adapters.items()
    }
    want = with_updates(model, scaled)(x)

    para_nnx.attach(model, scaled)

    np.testing.assert_allclose(model(x), want, atol=1e-9)
    got = para_nnx.detach(model)["einsum"]
    np.testing.assert_array_equal(got.b, adapters["einsum"].b * 0.5)


def test_a_compressed_child_runs_in_the_model_of_its_parent(model, adapters, x):
    child = para_jax.compress(adapters, para_jax.Gamma(0.5)).adapters
    want = with_updates(model, child)(x)

    para_nnx.attach(model, child)

    np.testing.assert_allclose(model(x), want, atol=1e-9)


@pytest.mark.user_defaults  # Optax mixes dtypes.
def test_an_optimizer_of_lora_params_trains_the_adapters_alone(model, adapters, x):
    para_nnx.attach(model, adapters)
    _, loras, rest = nnx.split(model, nnx.LoRAParam, ...)
    loras, rest = values(loras), values(rest)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.LoRAParam)

    @nnx.jit
    def step(model, optimizer, x):
        def loss(model):
            return jnp.square(model(x) - 1).mean()

        found = nnx.DiffState(0, nnx.LoRAParam)
        value, grads = nnx.value_and_grad(loss, argnums=found)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer, x)) for _ in range(5)]

    assert losses[-1] < losses[0]
    _, new, after = nnx.split(model, nnx.LoRAParam, ...)
    jax.tree.map(np.testing.assert_array_equal, values(after), rest)
    changed = jax.tree.map(lambda x, y: not np.array_equal(x, y), values(new), loras)
    assert all(jax.tree.leaves(changed))


def test_gradients_of_the_adapters_are_those_through_the_kernels(draw):
    layer = nnx.Sequential(
        nnx.Einsum("bd,ndh->bnh", (2, 4, 3), param_dtype=float, rngs=nnx.Rngs(0))
    )
    a, b, x = draw(4, 2), draw(2, 6), draw(5, 4)
    kernel = layer.layers[0].kernel[...]
    para_nnx.attach(layer, {"layers/0": para_jax.Adapter(a, b)})

    def loss(layer):
        return jnp.sin(layer(x)).sum()

    def expected(a, b):
        delta = (a @ b).reshape(4, 2, 3).transpose(1, 0, 2)
        return jnp.sin(jnp.einsum("bd,ndh->bnh", x, kernel + delta)).sum()

    got = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(layer)

    want = jax.grad(expected, argnums=(0, 1))(a, b)
    got = got["layers"][0]
    np.testing.assert_allclose(got["lora_a"][...], want[0], rtol=1e-9)
    np.testing.assert_allclose(got["lora_b"][...], want[1], rtol=1e-9)


@pytest.mark.skipif(
    flax.__version__ == "0.12.3", reason="Its nnx.jit compiles for each new Variable."
)
def test_a_model_is_compiled_once_for_adapters_of_the_same_ranks(model, adapters, x):
    traces = []

    @nnx.jit
    def run(model, x):
        traces.append(1)
        return model(x)

    for _ in range(2):
        para_nnx.attach(model, adapters)
        run(model, x)
        adapters = para_nnx.detach(model)

    assert len(traces) == 1


def test_an_adapted_model_survives_split_and_merge_and_clone(model, adapters, x):
    para_nnx.attach(model, adapters)
    want = model(x)

    graph, loras, rest = nnx.split(model, nnx.LoRAParam, ...)

    np.testing.assert_array_equal(nnx.merge(graph, loras, rest)(x), want)
    copy = nnx.clone(model)
    para_nnx.detach(model)
    np.testing.assert_array_equal(copy(x), want)


def test_a_layer_that_is_shared_is_adapted_wherever_it_is_called(draw):
    shared = nnx.Linear(4, 4, param_dtype=float, rngs=nnx.Rngs(0))
    model, x = nnx.Sequential(shared, jnp.tanh, shared), draw(2, 4)
    a, b = draw(4, 2), draw(2, 4)
    kernel = np.asarray(shared.kernel[...]) + np.asarray(a @ b)

    para_nnx.attach(model, {"layers/0": para_jax.Adapter(a, b)})

    want = np.tanh(x @ kernel) @ kernel
    np.testing.assert_allclose(model(x), want, rtol=1e-9, atol=1e-9)


class Doubled(nnx.Linear):
    """Stand for a user's own layer."""

    def __call__(self, inputs, out_sharding=None):
        return 2 * super().__call__(inputs, out_sharding=out_sharding)


def test_a_layer_of_the_users_own_class_computes_as_before_plus_the_update(draw):
    layer = Doubled(4, 3, param_dtype=float, rngs=nnx.Rngs(0))
    model, x, a, b = nnx.Dict(q=layer), draw(2, 4), draw(4, 2), draw(2, 3)
    before = layer(x)

    para_nnx.attach(model, {"q": para_jax.Adapter(a, b)})

    assert isinstance(model["q"], Doubled)
    np.testing.assert_allclose(model["q"](x), before + x @ a @ b, rtol=1e-9)


def test_an_equation_given_to_the_call_is_the_adapters_too(draw):
    layer = nnx.Einsum("td,dh->th", (4, 3), param_dtype=float, rngs=nnx.Rngs(0))
    model, x, a, b = nnx.Dict(q=layer), draw(2, 5, 4), draw(4, 2), draw(2, 3)
    kernel = np.asarray(layer.kernel[...]) + np.asarray(a @ b)

    para_nnx.attach(model, {"q": para_jax.Adapter(a, b)})

    got = model["q"](x, "btd,dh->bth")
    np.testing.assert_allclose(got, x @ kernel, rtol=1e-9)
    np.testing.assert_allclose(model["q"](x[0]), x[0] @ kernel, rtol=1e-9)


def test_layers_stacked_by_vmap_and_scanned_take_stacked_adapters(draw):
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def create(rngs):
        return nnx.Dict(
            q=nnx.Linear(4, 4, param_dtype=float, rngs=rngs),
            e=nnx.Einsum("bd,hdk->bhk", (2, 4, 2), param_dtype=float, rngs=rngs),
        )

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, layer):
        return jnp.tanh(layer["e"](jnp.tanh(layer["q"](x))).reshape(x.shape))

    model, x = create(nnx.Rngs(0)), draw(2, 4)
    adapters = {
        "q": para_jax.Adapter(draw(3, 4, 2), draw(3, 2, 4), scale=0.5),
        "e": para_jax.Adapter(draw(3, 4, 1), draw(3, 1, 4)),
    }
    q = np.asarray(model["q"].kernel[...]) + 0.5 * np.asarray(
        adapters["q"].a @ adapters["q"].b
    )
    e = np.asarray(adapters["e"].a @ adapters["e"].b).reshape(3, 4, 2, 2)
    e = np.asarray(model["e"].kernel[...]) + e.transpose(0, 2, 1, 3)
    want = np.asarray(x)
    for i in range(3):
        want = np.einsum("bd,hdk->bhk", np.tanh(want @ q[i]), e[i]).reshape(2, 4)
        want = np.tanh(want)

    para_nnx.attach(model, adapters)

    np.testing.assert_allclose(forward(x, model), want, atol=1e-10)
    para_nnx.merge(model)
    np.testing.assert_allclose(model["e"].kernel[...], e, atol=1e-12)
    np.testing.assert_allclose(forward(x, model), want, atol=1e-10)


def test_layers_stacked_on_another_axis_are_refused(draw):
    @nnx.split_rngs(splits=3)
    @nnx.vmap(out_axes=1)
    def create(rngs):
        return nnx.Dict(q=nnx.Linear(4, 5, rngs=rngs))

    model = create(nnx.Rngs(0))

    with error(r"'q' has shape \(4, 3, 5\), expected \(4, 5\).*axis 0"):
        para_nnx.attach(model, {"q": para_jax.Adapter(draw(3, 4, 2), draw(3, 2, 5))})


@pytest.mark.parametrize(
    ("path", "a", "b", "message"),
    [
        ("layers/0", (6, 2), (2, 5), r"'layers/0' does not fit.*\[5, r\], \[r, 6\]"),
        ("layers/0", (5, 2), (3, 6), "'layers/0' does not fit"),
        ("layers/0", (3, 5, 2), (3, 2, 6), "'layers/0' does not fit"),
        ("attention/out", (4, 2), (2, 6), r"\[6, r\], \[r, 4\]"),
        ("layers/2", (6, 2), (2, 5), r"'layers/2' belongs to no layer.*'layers/1'"),
        ("prelu", (6, 2), (2, 5), "'prelu' is a PReLU, expected a Linear"),
        ("attention", (6, 2), (2, 5), "'attention' is a MultiHeadAttention"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_attached(
    model, draw, path, a, b, message
):
    good = para_jax.Adapter(draw(6, 2), draw(2, 4))
    before = nnx.graphdef(model)

    with error(message):
        para_nnx.attach(
            model, {"layers/1": good, path: para_jax.Adapter(draw(*a), draw(*b))}
        )

    assert nnx.graphdef(model) == before


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda rngs: nnx.Conv(4, 3, (3,), rngs=rngs), "'q' is a Conv, expected"),
        (lambda rngs: nnx.Embed(4, 3, rngs=rngs), "'q' is a Embed, expected"),
        (
            lambda rngs: nnx.LinearGeneral(4, 3, batch_axis={0: 2}, rngs=rngs),
            "LinearGeneral with batch axes",
        ),
        (
            lambda rngs: nnx.Einsum("bd,bdf->bf", (2, 4, 3), rngs=rngs),
            "'q': the batch axis 'b'",
        ),
    ],
)
def test_layers_without_a_low_rank_form_are_refused_by_name(draw, layer, message):
    model = nnx.Dict(q=layer(nnx.Rngs(0)))

    with error(message):
        para_nnx.attach(model, {"q": para_jax.Adapter(draw(4, 2), draw(2, 3))})


def test_a_second_adapter_of_one_layer_is_refused(model, adapters):
    para_nnx.attach(model, adapters)

    with error("'layers/0' has an adapter already"):
        para_nnx.attach(model, {"layers/0": adapters["layers/0"]})
