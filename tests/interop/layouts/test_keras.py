"""Test living models of Keras 3 on its JAX backend, with LoRA in every kind of layer.

The updates are Keras's own: the kernel that a layer runs, less the one that it stores.
"""

import functools

import jax
import keras
import numpy as np
import pytest

import para_jax
from para_jax import layouts

# Keras 3.15.1 lacks NumPy 2's argument `copy`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*train their biases too:UserWarning"),
]
RANK, ALPHA = 4, 10.0
QUARTER, FULL = para_jax.Gamma(0.25), para_jax.Gamma(1.0)
# The matrix of each layer's update: Keras's `b` has the last axis of the kernel alone.
SIZES = {
    "out": (8, 6),
    "query": (12, 4),
    "up": (6, 7),
    "conv": (8, 6),
    "embed": (11, 6),
    "stem": (6, 5),
}


@pytest.fixture(autouse=True)
def as_keras_adds():
    with jax.numpy_rank_promotion("allow"):
        yield


TOKENS = np.array([[0, 3, 10, 3], [7, 1, 2, 9]], "int32")


def block():
    inputs = keras.Input((None, 6))
    heads = keras.layers.EinsumDense("btd,ndh->btnh", (None, 2, 4), name="query")
    out = keras.layers.EinsumDense("btnh,nhd->btd", (None, 6), name="out")
    up = keras.layers.Dense(7, activation="tanh", name="up")
    return keras.Model(inputs, up(out(heads(inputs))), name="block")


def build():
    tokens = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(11, 6, name="embed")(tokens)
    x = keras.layers.Conv2D(6, (2, 2), name="conv")(keras.layers.Reshape((4, 3, 2))(x))
    x = block()(keras.layers.Reshape((6, 6))(x))
    x = keras.layers.Lambda(lambda x: x[..., :6])(x)
    return keras.Model(tokens, keras.layers.Dense(5, name="stem")(x), name="net")


def adapters(model):
    """Return the layers that have LoRA, or could, by path."""
    every = model._flatten_layers(include_self=False)
    return {x.path: x for x in every if hasattr(x, "enable_lora")}


def adapted(dtype="float32", quantised=None):
    """Return a model with random factors, of another alpha in one of its layers."""
    keras.utils.set_random_seed(0)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    model = build()
    keras.config.set_dtype_policy(before)
    if quantised:
        kinds = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)
        for layer in adapters(model).values():
            if isinstance(layer, kinds):
                layer.quantize(quantised)
    random = np.random.default_rng(1)
    for path, layer in adapters(model).items():
        layer.enable_lora(RANK, lora_alpha=RANK if path == "stem" else ALPHA)
        for x in factors(layer):
            x.assign(random.normal(size=x.shape, scale=0.5))
    return model


def factors(layer):
    kind = "embeddings" if hasattr(layer, "lora_embeddings_a") else "kernel"
    return [getattr(layer, f"lora_{kind}_{side}") for side in "ab"]


def stored(layer):
    return layer._embeddings if hasattr(layer, "embeddings") else layer._kernel


def update(layer):
    """Return what Keras adds to the kernel of a layer."""
    whole = layer.embeddings if hasattr(layer, "embeddings") else layer.kernel
    return np.asarray(whole, np.float64) - np.asarray(stored(layer), np.float64)


def delta(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * a @ b


def outputs(model):
    return np.asarray(model(TOKENS), np.float64)


def with_updates(child):
    """Return the outputs of a model without LoRA whose kernels hold a child's updates.

    Keras's own `kernel + update`, for kernels that are plain arrays.
    """
    model = adapted()
    for path, layer in adapters(model).items():
        variable = stored(layer)
        layer.lora_enabled = False
        if path in child.adapters:
            extra = delta(child.adapters[path]).reshape(variable.shape)
            variable.assign(np.asarray(variable) + extra)
    return outputs(model)


@pytest.fixture
def model():
    return adapted()


def taken(model):
    return para_jax.from_tree(layouts.keras_tree(model))


def close(got, want, rtol=1e-5):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.layout("Keras", "found")
def test_every_layer_is_found_with_its_own_alpha(model):
    parent = taken(model)

    assert parent.tree.layout == "keras"
    assert {p: (x.inputs, x.outputs) for p, x in parent.adapters.items()} == SIZES
    for path, layer in adapters(model).items():
        want = update(layer).reshape(SIZES[path])
        close(delta(parent.adapters[path]), want)
    assert parent.layers == {
        "out": para_jax.Layer(kind="einsum", window=(2, 4)),
        "query": para_jax.Layer(kind="einsum", window=(2, 6)),
        "conv": para_jax.Layer(kind="conv", window=(2, 2, 2)),
        "embed": para_jax.Layer(kind="embedding"),
    }


@pytest.mark.layout("Keras", "put back", "forward")
def test_at_full_budget_the_outputs_stay(model):
    want = outputs(model)
    child = para_jax.compress(taken(model), FULL)

    layouts.keras_assign(model, child)

    close(outputs(model), want)
    assert {x.lora_alpha / x.lora_rank for x in adapters(model).values()} == {1.0}


@pytest.mark.layout("Keras", "compressed", "put back", "forward")
def test_a_child_runs_with_a_rank_a_layer(model):
    child = para_jax.compress(taken(model), QUARTER)

    layouts.keras_assign(model, child)

    kept = {path: child.adapters[path].rank for path in child.adapters}
    ranks = {p: x.lora_rank for p, x in adapters(model).items() if x.lora_enabled}
    assert ranks == kept
    assert sum(kept.values()) == len(SIZES) * RANK // 4
    assert len(kept) < len(SIZES)  # Some layer lost all of its ranks.
    close(outputs(model), with_updates(child))
    close(model.predict(TOKENS, verbose=0), outputs(model))


def test_a_layer_that_kept_nothing_has_no_lora_left(model):
    child = para_jax.compress(taken(model), QUARTER)

    layouts.keras_assign(model, child)

    for path in SIZES.keys() - child.adapters.keys():
        layer = adapters(model)[path]
        assert not layer.lora_enabled
        assert not any("lora" in x.path for x in layer.variables)
        assert "lora_rank" not in layer.get_config()
        assert not layer.trainable_variables or layer.bias in layer.trainable_variables


def test_all_layers_can_be_padded_to_one_rank(model):
    child = para_jax.compress(taken(model), QUARTER)
    rank = max(layouts.module_ranks(child).values())

    layouts.keras_assign(model, child, rank=rank)

    assert {x.lora_rank for x in adapters(model).values()} == {rank}
    close(outputs(model), with_updates(child))


def test_a_child_can_be_put_into_the_parents_tree(model):
    parent = taken(model)
    child = para_jax.compress(parent, para_jax.Rank(2))

    tree = para_jax.to_tree(child)

    assert tree.keys() == SIZES.keys()
    again = para_jax.from_tree(tree)
    for path, x in child.adapters.items():
        close(delta(again.adapters[path]), delta(x))
        assert tree[path]["lora_alpha"] == x.rank


@pytest.mark.parametrize("nested", [False, True])
def test_the_lists_of_a_stateless_loop_go_by_the_paths_of_variables(model, nested):
    variables = model.trainable_variables
    values = [np.asarray(x.value) + 0.25 for x in variables]
    flat = dict(zip([x.path for x in variables], values, strict=True))
    alphas = dict.fromkeys(SIZES, ALPHA) | {"stem": RANK}

    tree = para_jax.unnest(flat) if nested else flat
    parent = para_jax.from_tree(tree, layout="keras", alpha=alphas)

    same = para_jax.from_tree(layouts.keras_tree(model, values))
    assert parent.adapters.keys() == same.adapters.keys() == SIZES.keys()
    for path, x in parent.adapters.items():
        close(delta(x), delta(same.adapters[path]))
    child = para_jax.compress(parent, para_jax.Rank(2))
    padded = para_jax.to_tree(child, rank=RANK)
    if not nested:
        # The model scales by its own alpha over the rank.
        for x in factors(adapters(model)["stem"]):
            x.assign(padded[x.path])
        close(update(adapters(model)["stem"]), delta(child.adapters["stem"]))


def test_the_tree_can_be_taken_inside_of_jit(model):
    values = [x.value for x in model.trainable_variables]

    @jax.jit
    def norm(values):
        parent = para_jax.from_tree(layouts.keras_tree(model, values))
        return para_jax.decompose(parent.adapters)["stem"].s

    want = np.linalg.svd(update(adapters(model)["stem"]), compute_uv=False)[:RANK]
    close(norm(values), want, rtol=1e-4)


def test_training_goes_on_after_compiling_again(model):
    model.compile("adam", "mse")
    labels = np.ones((2, 6, 5), "float32")
    model.fit(TOKENS, labels, verbose=0)
    child = para_jax.compress(taken(model), para_jax.Rank(2))

    layouts.keras_assign(model, child)
    model.compile("adam", "mse")
    model.fit(TOKENS, labels, verbose=0)

    for path, x in child.adapters.items():
        layer = adapters(model)[path]
        assert layer.lora_rank == x.rank
        assert np.abs(np.asarray(factors(layer)[1]) - np.asarray(x.b)).max() > 0
        assert not stored(layer).trainable


def test_predicting_does_not_take_the_factors_away(model):
    tree = layouts.keras_tree(model)
    model.predict(TOKENS, verbose=0)

    assert para_jax.from_tree(tree).adapters.keys() == SIZES.keys()


def test_mixed_precision_keeps_factors_in_float32():
    model = adapted("mixed_bfloat16")
    want = outputs(model)

    parent = taken(model)
    layouts.keras_assign(model, para_jax.compress(parent, FULL))

    assert {x.a.dtype.name for x in parent.adapters.values()} == {"float32"}
    # Rounded at every layer: single outputs of tanh may differ by more.
    assert np.abs(outputs(model) - want).mean() < 0.01 * np.abs(want).max()


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantised_layers_keep_their_kernels(mode):
    model = adapted(quantised=mode)
    want = outputs(model)
    kernels = {path: np.asarray(stored(x)) for path, x in adapters(model).items()}

    layouts.keras_assign(model, para_jax.compress(taken(model), FULL))

    close(outputs(model), want, rtol=1e-4)
    for path, kernel in kernels.items():
        np.testing.assert_array_equal(stored(adapters(model)[path]), kernel)


def test_a_model_without_lora_is_refused():
    with pytest.raises(
        ValueError, match=r"'net' has LoRA enabled in none.*enable_lora"
    ):
        layouts.keras_tree(build())


def test_layers_of_two_functional_models_are_told_apart():
    """Keras leaves the name of a functional model out of its layers' paths."""
    inputs = keras.Input((3,))
    towers = []
    for name in ("one", "two"):
        dense = keras.layers.Dense(4, name="dense")
        towers.append(keras.Model(inputs, dense(inputs), name=name))
        dense.enable_lora(2)
    assert {x.layers[1].path for x in towers} == {"dense"}

    model = keras.Model(inputs, [x(inputs) for x in towers])

    assert layouts.keras_tree(model).keys() == {"one/dense", "two/dense"}


def test_two_layers_of_one_name_are_refused():
    class Pair(keras.Model):
        def __init__(self):
            super().__init__()
            self.both = [keras.layers.Dense(3, name="same") for _ in "ab"]

        def build(self, shape):
            for x in self.both:
                x.build(shape)
                x.enable_lora(2)

    pair = Pair()
    pair.build((None, 4))

    with pytest.raises(ValueError, match="Two layers have the path 'same'"):
        layouts.keras_tree(pair)


def test_values_of_another_model_are_refused(model):
    values = [x.value for x in model.trainable_variables]

    with pytest.raises(
        ValueError, match=r"values has the shapes .*trainable_variables"
    ):
        layouts.keras_tree(model, values[1:])


def test_a_child_of_another_model_is_refused(model):
    child = para_jax.compress(taken(model), FULL)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="x")])
    other.layers[0].enable_lora(1)

    with pytest.raises(ValueError, match="'conv' is no layer of the model"):
        layouts.keras_assign(other, child)
    assert adapters(model)["out"].lora_rank == RANK


def test_alpha_is_asked_for_where_the_tree_has_none(model):
    flat = {x.path: x.value for x in model.trainable_variables}

    with pytest.raises(ValueError, match=r"layout keras does not record.*lora_alpha"):
        para_jax.from_tree(flat)
    with pytest.raises(ValueError, match="holds its own alpha"):
        para_jax.from_tree(layouts.keras_tree(model), alpha=2.0)


def test_a_layer_that_only_takes_part_keeps_its_kind(model):
    half = functools.reduce(lambda x, y: x, adapters(model).values())

    assert taken(half).adapters.keys() == {half.path}


def small(alpha, *, name="small"):
    """Return a model of two Dense layers with LoRA of rank 2, and its inputs."""
    keras.utils.set_random_seed(0)
    layer = functools.partial(keras.layers.Dense, use_bias=False)
    model = keras.Sequential(
        [keras.Input((5,)), layer(6, name="one"), layer(3, name="two")], name=name
    )
    random = np.random.default_rng(2)
    for x in model.layers:
        x.enable_lora(2, lora_alpha=alpha)
        for factor in factors(x):
            factor.assign(random.normal(size=factor.shape))
    return model, random.normal(size=(4, 5)).astype("float32")


@pytest.mark.parametrize("compiled", ["predict", "evaluate"])
def test_a_child_runs_in_programs_that_were_compiled_before(compiled):
    # Keras compiles alpha / r as a constant, and the child's is 1.
    model, x = small(7.0)
    model.compile(loss="mse")
    want = model(x)
    model.predict(x, verbose=0)
    model.evaluate(x, want, verbose=0)
    child = para_jax.compress(para_jax.from_tree(layouts.keras_tree(model)), FULL)

    layouts.keras_assign(model, child)

    if compiled == "predict":
        np.testing.assert_allclose(model.predict(x, verbose=0), want, rtol=1e-4)
    else:
        assert model.evaluate(x, want, verbose=0) < 1e-6


def test_a_whole_child_follows_one_without_a_layer():
    model, x = small(7.0)
    want = np.asarray(model(x))
    parent = para_jax.from_tree(layouts.keras_tree(model))
    child = para_jax.compress(parent, para_jax.Rank(0.5))
    assert len(child.adapters) == 1

    layouts.keras_assign(model, child)
    assert [x.lora_enabled for x in model.layers].count(True) == 1
    layouts.keras_assign(model, para_jax.compress(parent, FULL))

    np.testing.assert_allclose(model(x), want, rtol=1e-4)


def test_layers_of_other_axes_are_refused_and_nothing_changes():
    model, x = small(7.0)
    parent = para_jax.from_tree(layouts.keras_tree(model))
    other = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(6, use_bias=False, name="one"),
            keras.layers.Reshape((2, 3)),
            keras.layers.EinsumDense("bij,ijk->bk", 3, name="two"),
        ],
        name="small",
    )
    for layer in (other.layers[0], other.layers[2]):
        layer.enable_lora(2)
    before = other(x)

    with pytest.raises(ValueError, match=r"two' has a kernel \[2, 3, 3\] .* \[6, 3\]"):
        layouts.keras_assign(other, para_jax.compress(parent, FULL))

    np.testing.assert_array_equal(other(x), before)
    assert other.layers[0].lora_rank == 2


def test_trained_biases_are_told():
    layer = keras.layers.Dense(7, name="up")
    model = keras.Sequential([keras.Input((5,)), layer])
    layer.enable_lora(2)

    with pytest.warns(UserWarning, match="1 layers with LoRA, such as .*up'"):
        layouts.keras_tree(model)
    layer.bias.trainable = False
    layouts.keras_tree(model)
