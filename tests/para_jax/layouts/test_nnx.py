"""Check trees of flax.nnx's own LoRA modules; flax runs the children.

All in float64. The oracle is the base model with our update in its kernels, computed by
NumPy from the adapters' paths.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import para_jax

FULL, QUARTER = para_jax.Gamma(1.0), para_jax.Gamma(0.25)
NAME = "flax.nnx"


class Block(nnx.Module):
    """Combine a `LoRA` around a Linear, a `LoRALinear`, and layers in a list."""

    def __init__(self, rngs, ranks=None, kind=nnx.LoRAParam):
        rank = (lambda path: 4) if ranks is None else ranks.__getitem__
        more = {"rngs": rngs, "lora_param_type": kind}
        wide = {"param_dtype": jnp.float64}
        up = nnx.Linear(6, 5, rngs=rngs, **wide)
        self.up = nnx.LoRA(6, rank("up"), 5, base_module=up, **more, **wide)
        self.layers = nnx.List(
            [
                nnx.LoRALinear(
                    5,
                    5,
                    lora_rank=rank(f"layers/{i}/lora"),
                    lora_param_dtype=jnp.float64,
                    **more,
                    **wide,
                )
                for i in range(2)
            ]
        )

    def __call__(self, x):
        x = nnx.tanh(self.up(x))
        for layer in self.layers:
            x = x + nnx.tanh(layer(x))
        return x


class Gate(nnx.Variable):
    """Stand for a user's own type of LoRA parameter."""


# The shapes of a model's leaves; the ranks `up`, `first` and `second` are filled in.
def leaves_of(up, first, second):
    return {
        "layers/0/bias": (5,),
        "layers/0/kernel": (5, 5),
        "layers/0/lora/lora_a": (5, first),
        "layers/0/lora/lora_b": (first, 5),
        "layers/1/bias": (5,),
        "layers/1/kernel": (5, 5),
        "layers/1/lora/lora_a": (5, second),
        "layers/1/lora/lora_b": (second, 5),
        "up/base_module/bias": (5,),
        "up/base_module/kernel": (6, 5),
        "up/lora_a": (6, up),
        "up/lora_b": (up, 5),
    }


KERNELS = {
    "layers/0": ("layers/0/kernel", ...),
    "layers/1": ("layers/1/kernel", ...),
    "up": ("up/base_module/kernel", ...),
}
FOUND = {
    "layers/0": ((5, 4), (4, 5), 1.0),
    "layers/1": ((5, 4), (4, 5), 1.0),
    "up": ((6, 4), (4, 5), 1.0),
}


def random(model):
    """Fill a model with random numbers: the first layer matters most."""
    rng = np.random.default_rng(0)

    def fill(path, x):
        values = rng.normal(size=x.shape)
        if 3 in x.shape:
            first = np.arange(3) == 0
            stack = [3 if n == 3 else 1 for n in x.shape]
            return jnp.asarray(values * np.where(first, 1.0, 0.9).reshape(stack))
        return jnp.asarray(values * (2.0 if "/0/" in name(path) else 0.5))

    state = jax.tree_util.tree_map_with_path(fill, nnx.state(model))
    nnx.update(model, state)
    return model


def inputs():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)))


def name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flat(tree):
    return {
        name(path).removesuffix("/value"): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def shapes(tree):
    return {path: x.shape for path, x in flat(tree).items()}


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def with_updates(model, adapters, places):
    """Return a model without LoRA, with the updates in its kernels.

    `places` gives the kernel of each adapter, and the place in it.
    """
    state = nnx.state(model)
    leaves = {path: np.array(x) for path, x in flat(state).items()}
    for path, x in adapters.items():
        kernel, *index = places[path]
        leaves[kernel][tuple(index)] += x.scale * np.asarray(x.a) @ np.asarray(x.b)
    for path in leaves:
        if "lora_" in path:
            leaves[path] = np.zeros_like(leaves[path])
    base = nnx.clone(model)
    values = [jnp.asarray(x) for x in leaves.values()]
    nnx.update(base, jax.tree.unflatten(jax.tree.structure(state), values))
    return base


def lora_only(model):
    return nnx.state(model, nnx.LoRAParam)


def restored(model, folder):
    """Return the tree restored by Orbax without a target."""
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(folder / "state", nnx.state(model))
    form = checkpointer.metadata(folder / "state").item_metadata.tree
    to = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), form)
    return checkpointer.restore(folder / "state", restore_args=to)


def put_back(model, tree):
    """Update a model with a tree, or with Orbax's form, with strings as layer keys.

    Such a tree has the level `value` too, unknown to `nnx.update`.
    """

    def keys(tree):
        if not isinstance(tree, dict):
            return jnp.asarray(tree)
        if set(tree) == {"value"}:
            return jnp.asarray(tree["value"])
        return {int(k) if str(k).isdigit() else k: keys(x) for k, x in tree.items()}

    nnx.update(model, keys(tree) if isinstance(tree, dict) else tree)


TREES = {
    "nnx.State": lambda model, folder: nnx.state(model),
    "pure dict": lambda model, folder: nnx.to_pure_dict(nnx.state(model)),
    "LoRA alone": lambda model, folder: lora_only(model),
    "restored by Orbax": restored,
}
trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())


@pytest.mark.layout(NAME, "found")
@trees
def test_every_module_is_found_in_each_form_of_a_state(tree, tmp_path):
    model = random(Block(nnx.Rngs(0)))

    parent = para_jax.from_tree(tree(model, tmp_path))

    assert parent.tree.layout == "nnx"
    got = {k: (x.a.shape, x.b.shape, x.scale) for k, x in parent.adapters.items()}
    assert got == FOUND
    np.testing.assert_array_equal(parent.adapters["up"].a, model.up.lora_a[...])
    second = model.layers[1].lora.lora_b[...]
    np.testing.assert_array_equal(parent.adapters["layers/1"].b, second)


@pytest.mark.layout(NAME, "found")
def test_a_users_own_type_of_parameter_is_found():
    model = random(Block(nnx.Rngs(0), kind=Gate))

    parent = para_jax.from_tree(nnx.state(model, Gate))

    assert parent.adapters.keys() == FOUND.keys()
    child = para_jax.compress(parent, QUARTER)
    assert isinstance(para_jax.to_tree(child)["up"]["lora_a"], Gate)


@pytest.mark.layout(NAME, "compressed")
def test_the_child_is_the_truncation_of_all_updates_by_one_threshold():
    parent = para_jax.from_tree(nnx.state(random(Block(nnx.Rngs(0)))))

    child = para_jax.compress(parent, QUARTER).adapters

    spectra = {
        path: np.linalg.svd(np.asarray(x.a) @ np.asarray(x.b), full_matrices=False)
        for path, x in parent.adapters.items()
    }
    pool = -np.sort(-np.concatenate([s[:4] for _, s, _ in spectra.values()]))
    for path, (u, s, vt) in spectra.items():
        want = (u * np.where(s >= pool[2], s, 0)) @ vt
        got = child[path].a @ child[path].b if path in child else 0 * want
        np.testing.assert_allclose(got, want, atol=1e-9)


@pytest.mark.layout(NAME, "put back")
@trees
def test_the_whole_child_put_back_computes_what_the_parent_does(tree, tmp_path):
    model = random(Block(nnx.Rngs(0)))
    want = model(inputs())
    parent = para_jax.from_tree(tree(model, tmp_path))

    written = para_jax.to_tree(para_jax.compress(parent, FULL))

    put_back(model, written)
    close(model(inputs()), want)


@pytest.mark.layout(NAME, "forward")
@trees
def test_flax_runs_the_ragged_child_as_the_base_with_our_update(tree, tmp_path):
    model = random(Block(nnx.Rngs(0)))
    parent = para_jax.from_tree(tree(model, tmp_path))
    child = para_jax.compress(parent, QUARTER)
    base = with_updates(model, child.adapters, KERNELS)

    put_back(model, para_jax.to_tree(child))

    assert shapes(nnx.state(model)) == leaves_of(1, 3, 1)
    close(model(inputs()), base(inputs()))


@pytest.mark.layout(NAME, "put back")
def test_a_model_is_built_with_the_childs_own_ranks():
    model = random(Block(nnx.Rngs(0)))
    child = para_jax.compress(para_jax.from_tree(nnx.state(model)), QUARTER)

    ranks = para_jax.layouts.module_ranks(child)
    smaller = Block(nnx.Rngs(1), ranks=ranks)

    assert ranks == {"layers/0/lora": 3, "layers/1/lora": 1, "up": 1}
    assert shapes(nnx.state(smaller)) == leaves_of(1, 3, 1)
    written = para_jax.to_tree(child)
    nnx.update(smaller, written)
    nnx.update(model, written)
    np.testing.assert_array_equal(smaller(inputs()), model(inputs()))


# --- Stacked layers ---------------------------------------------------------------


class Stack(nnx.Module):
    """Make layers by `nnx.vmap` and run them by `nnx.scan`."""

    def __init__(self, rngs, axis):
        self.axis = axis

        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=nnx.StateAxes({...: axis}))
        def make(rngs):
            wide = {"param_dtype": jnp.float64, "lora_param_dtype": jnp.float64}
            return nnx.LoRALinear(6, 6, lora_rank=4, rngs=rngs, use_bias=False, **wide)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(
            in_axes=(nnx.StateAxes({...: self.axis}), nnx.Carry), out_axes=nnx.Carry
        )
        def run(layer, x):
            return x + nnx.tanh(layer(x))

        return run(self.layers, x)


STACKED = {
    0: {
        "layers/kernel": (3, 6, 6),
        "layers/lora/lora_a": (3, 6, 2),
        "layers/lora/lora_b": (3, 2, 6),
    },
    1: {
        "layers/kernel": (6, 3, 6),
        "layers/lora/lora_a": (6, 3, 2),
        "layers/lora/lora_b": (2, 3, 6),
    },
}


@pytest.mark.layout(NAME, "found")
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", [nnx.Param, nnx.LoRAParam])
def test_stacked_layers_are_one_adapter_a_layer(axis, kind):
    model = random(Stack(nnx.Rngs(0), axis))

    parent = para_jax.from_tree(nnx.state(model, kind))

    got = {k: (x.a.shape, x.b.shape, x.scale) for k, x in parent.adapters.items()}
    assert got == {"layers": ((3, 6, 4), (3, 4, 6), 1.0)}
    want = np.moveaxis(model.layers.lora.lora_a[...], axis, 0)
    np.testing.assert_array_equal(parent.adapters["layers"].a, want)


@pytest.mark.layout(NAME, "put back")
@pytest.mark.parametrize("axis", [0, 1])
def test_the_whole_child_of_a_stack_computes_what_the_parent_does(axis):
    model = random(Stack(nnx.Rngs(0), axis))
    want = model(inputs())

    child = para_jax.compress(para_jax.from_tree(nnx.state(model)), FULL)

    nnx.update(model, para_jax.to_tree(child))
    close(model(inputs()), want)


@pytest.mark.layout(NAME, "forward")
@pytest.mark.parametrize("axis", [0, 1])
def test_flax_scans_the_child_of_a_stack_padded_to_its_largest_rank(axis):
    model = random(Stack(nnx.Rngs(0), axis))
    child = para_jax.compress(para_jax.from_tree(nnx.state(model)), QUARTER)
    places = {
        f"layers/{i}": ("layers/kernel", *[slice(None)] * axis, i) for i in range(3)
    }
    base = with_updates(model, child.adapters, places)

    nnx.update(model, para_jax.to_tree(child))

    assert len({x.rank for x in child.adapters.values()}) > 1
    assert shapes(nnx.state(model)) == STACKED[axis]
    close(model(inputs()), base(inputs()))


@pytest.mark.layout(NAME, "compressed")
def test_a_state_is_masked_inside_jit():
    model = random(Block(nnx.Rngs(0)))
    state = nnx.state(model)

    @jax.jit
    def masked(state):
        parent = para_jax.from_tree(state)
        spectra = para_jax.decompose(parent.adapters)
        masks = para_jax.masks(spectra, QUARTER)
        adapters = para_jax.repack(spectra, masks, parent.adapters, form="masked")
        return para_jax.to_tree(dataclasses.replace(parent, adapters=adapters))

    got = masked(state)

    assert isinstance(got, nnx.State)
    assert shapes(got) == leaves_of(4, 4, 4)
    child = para_jax.compress(para_jax.from_tree(state), QUARTER)
    base = with_updates(model, child.adapters, KERNELS)
    nnx.update(model, got)
    close(model(inputs()), base(inputs()))
