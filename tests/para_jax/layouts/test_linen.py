"""Check a user's own Linen models: a `lora` collection beside `params`, any stacking.

The model is plain Flax. Its dense layer applies the factors in the collection. It is
scanned by `nn.scan`, over axis 0 or axis 1, or called layer by layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import para_jax

L, M, N, R = 5, 6, 8, 3
SCALE = 0.75
NAME = "Linen"
STACKED = {"scan over axis 0": 0, "scan over axis 1": 1, "a module a layer": None}
MODULES = {"down": (N, M), "up": (M, N)}


class Dense(nn.Module):
    features: int
    scale: float

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (x.shape[-1], self.features), x.dtype)
        y = x @ kernel
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name) for name in "ab")
            y += (x @ a) @ b * jnp.asarray(self.scale, y.dtype)
        return y


class Block(nn.Module):
    scale: float

    @nn.compact
    def __call__(self, x, _):
        h = jnp.tanh(Dense(N, scale=self.scale, name="up")(x))
        return x + Dense(M, scale=self.scale, name="down")(h), None


class Model(nn.Module):
    axis: int | None
    scale: float = SCALE

    @nn.compact
    def __call__(self, x):
        if self.axis is None:
            for i in range(L):
                x, _ = Block(self.scale, name=f"layer_{i}")(x, None)
            return x
        scanned = nn.scan(
            Block,
            variable_axes={"params": self.axis, "lora": self.axis},
            split_rngs={"params": True},
            length=L,
        )
        return scanned(self.scale, name="layers")(x, None)[0]


def paths(axis):
    if axis is not None:
        return [f"layers/{name}" for name in MODULES]
    return [f"layer_{i}/{name}" for i in range(L) for name in MODULES]


def stored(axis, rows, columns):
    """Return the stored shape of a stack of matrices."""
    return {None: (rows, columns), 0: (L, rows, columns), 1: (rows, L, columns)}[axis]


def variables(axis, rank=R):
    """Return random base weights, and random adapters of any rank per module."""
    rng = np.random.default_rng(0)
    params, lora = {}, {}
    for path in paths(axis):
        m, n = MODULES[path.split("/")[1]]
        outer, inner = path.split("/")
        draw = {
            "kernel": rng.normal(size=stored(axis, m, n)) / 3,
            "a": rng.normal(size=stored(axis, m, rank)),
            "b": rng.normal(size=stored(axis, rank, n)),
        }
        draw = {name: jnp.asarray(x) for name, x in draw.items()}
        params.setdefault(outer, {})[inner] = {"kernel": draw.pop("kernel")}
        lora.setdefault(outer, {})[inner] = draw
    return {"params": params, "lora": lora}


def run(axis, tree, scale=SCALE):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, M)))
    return np.asarray(jax.jit(Model(axis, scale).apply)(tree, x))


def with_deltas(axis, tree, child):
    """Return the parameters alone, with the child's updates in their kernels."""
    params = jax.tree.map(np.array, tree["params"])
    for path, x in child.adapters.items():
        outer, inner, *layer = path.split("/")
        kernel = params[outer][inner]["kernel"]
        index = {None: ..., 0: (*map(int, layer),), 1: (slice(None), *map(int, layer))}
        kernel[index[axis]] += np.asarray(x.a) @ np.asarray(x.b)
    return {"params": jax.tree.map(jnp.asarray, params)}


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-10 * np.abs(want).max())


def shapes(tree):
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
        for path, x in found
    }


@pytest.fixture(params=STACKED.values(), ids=list(STACKED))
def axis(request):
    return request.param


@pytest.mark.layout(NAME, "found")
def test_the_adapters_are_found_with_their_stacks_and_scales(axis):
    parent = para_jax.from_tree(variables(axis), scale=SCALE)

    stack = () if axis is None else (L,)
    assert parent.tree.layout == "linen"
    assert {p: (x.a.shape, x.b.shape, x.scale) for p, x in parent.adapters.items()} == {
        path: ((*stack, m, R), (*stack, R, n), SCALE)
        for path in paths(axis)
        for m, n in [MODULES[path.split("/")[1]]]
    }


@pytest.mark.layout(NAME, "compressed")
def test_a_child_of_the_full_budget_is_the_same_model(axis):
    tree = variables(axis)
    parent = para_jax.from_tree(tree, scale=SCALE)
    child = para_jax.compress(parent, para_jax.Gamma(1.0))

    got = para_jax.to_tree(child)

    assert shapes(got) == shapes(tree)
    close(run(axis, got, scale=1.0), run(axis, tree))


@pytest.mark.layout(NAME, "forward")
def test_the_model_runs_a_child_as_the_base_with_our_updates(axis):
    tree = variables(axis)
    parent = para_jax.from_tree(tree, scale=SCALE)
    child = para_jax.compress(parent, para_jax.Gamma(0.25))

    got = run(axis, para_jax.to_tree(child), scale=1.0)

    close(got, run(axis, with_deltas(axis, tree, child)))
    assert np.abs(got - run(axis, tree)).max() > 1e-3 * np.abs(got).max()


@pytest.mark.layout(NAME, "put back")
def test_a_stack_is_padded_to_its_largest_rank_and_a_layer_keeps_its_own(axis):
    tree = variables(axis)
    child = para_jax.compress(
        para_jax.from_tree(tree, scale=SCALE), para_jax.Gamma(0.5)
    )

    got = para_jax.to_tree(child)

    want = {}
    for path in paths(axis):
        m, n = MODULES[path.split("/")[1]]
        members = [path] if axis is None else [f"{path}/{i}" for i in range(L)]
        ranks = [child.adapters[x].rank for x in members if x in child.adapters]
        k = max(ranks, default=1)  # Zeros, if nothing is kept.
        want[f"lora/{path}/a"] = stored(axis, m, k)
        want[f"lora/{path}/b"] = stored(axis, k, n)
        want[f"params/{path}/kernel"] = stored(axis, m, n)
    assert shapes(got) == want
    assert len({x.rank for x in child.adapters.values()}) > 1


def test_a_masked_child_made_inside_jit_runs_in_the_parents_program(axis):
    tree = variables(axis)

    @jax.jit
    def cut(tree):
        parent = para_jax.from_tree(tree, scale=SCALE)
        spectra = para_jax.decompose(parent.adapters)
        kept = para_jax.masks(spectra, para_jax.Gamma(0.25))
        adapters = para_jax.repack(spectra, kept, parent.adapters, form="masked")
        return para_jax.to_tree(
            para_jax.Checkpoint(adapters=adapters, tree=parent.tree)
        )

    got = cut(tree)

    parent = para_jax.from_tree(tree, scale=SCALE)
    child = para_jax.compress(parent, para_jax.Gamma(0.25))
    assert shapes(got) == shapes(tree)
    close(run(axis, got, scale=1.0), run(axis, with_deltas(axis, tree, child)))


def test_what_to_params_made_is_found_again():
    rng = np.random.default_rng(0)
    made = {
        path: para_jax.Adapter(rng.normal(size=(4, r)), rng.normal(size=(r, 5)), 2.0)
        for path, r in {"mlp/up": 2, "mlp/gate": 1, "out": 3}.items()
    }

    got = para_jax.from_tree(para_jax.to_params(made), scale=1).adapters

    assert got.keys() == made.keys()
    for path, x in made.items():
        np.testing.assert_allclose(got[path].a @ got[path].b, 2.0 * x.a @ x.b)


def test_without_kernels_too_the_two_scan_axes_are_told_apart():
    for axis in (0, 1):
        alone = variables(axis)["lora"]

        parent = para_jax.from_tree(alone, scale=SCALE)

        assert parent.adapters["layers/up"].a.shape == (L, M, R)


def test_layers_as_many_as_inputs_and_ranks_have_to_be_told():
    """`a [3, 3, 3]` and `b [3, 3, 8]` are three layers on axis 0, or on axis 1."""
    rng = np.random.default_rng(0)
    factors = {"a": rng.normal(size=(L, L, R)), "b": rng.normal(size=(R, L, N))}
    either = {"a": rng.normal(size=(R, R, R)), "b": rng.normal(size=(R, R, N))}

    assert para_jax.from_tree({"up": factors}, scale=1).adapters["up"].stack == (L,)
    with pytest.raises(ValueError, match=r"'up'.* 2 ways.* stack_axis=: 0 or 1"):
        para_jax.from_tree({"up": either}, scale=1)
    for axis in (0, 1):
        x = para_jax.from_tree({"up": either}, scale=1, stack_axis=axis).adapters["up"]
        np.testing.assert_array_equal(x.a, np.moveaxis(either["a"], axis, 0))
        np.testing.assert_array_equal(x.b, np.moveaxis(either["b"], axis, 0))


def test_the_scale_is_asked_for():
    with pytest.raises(ValueError, match=r"'layer_0/down'.*scale=: alpha / r"):
        para_jax.from_tree(variables(None))


def test_factors_of_another_kernel_are_refused():
    tree = variables(None)
    tree["params"]["layer_3"]["up"]["kernel"] = jnp.zeros((M, N + 1))

    with pytest.raises(ValueError, match=r"'layer_3/up'.* do not fit their kernel"):
        para_jax.from_tree(tree, scale=SCALE)
