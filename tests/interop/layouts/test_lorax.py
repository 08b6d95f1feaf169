"""Test real trees of jax-lorax, read from files since it needs an older JAX.

`make_lorax_tree.py` made them with jax-lorax 0.3.1 on jax 0.4.25, and had lorax run the
parent and one of our children. Its docstring gives the commands to make them again.
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax

NAME = "jax-lorax"
HERE = pathlib.Path(__file__).parent
WEIGHTS = ("conv/kernel", "embed/embedding", "square/kernel", "up/kernel")
# The adapter's path, its stored shapes `[.., m, r]` and `[.., r, n]`, and its scale.
FOUND = {
    "conv": ((15, 5), (5, 6), 1.0),
    "embed": ((11, 4), (4, 5), 5 / 4),
    "square": ((8, 7), (7, 8), 5 / 7),
    "up": ((6, 4), (4, 8), 5 / 4),
}


@pytest.fixture(scope="module")
def script():
    path = HERE / "make_lorax_tree.py"
    spec = importlib.util.spec_from_file_location("make_lorax_tree", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parent_file(script):
    return dict(np.load(script.PARENT))


@pytest.fixture(scope="module")
def child_file(script):
    return dict(np.load(script.CHILD))


@pytest.fixture(scope="module")
def params(script, parent_file):
    return script.nested(parent_file)


def shapes(tree):
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
        for path, x in found
    }


def merged(tree, alpha=None):
    """Return plain kernels by lorax's formula `w + alpha / k * b @ a`, in float64.

    An `alpha` of None becomes the alpha of a child: its rank.
    """
    if "w" not in tree:
        found = tree.items()
        return {k: merged(x, alpha) if isinstance(x, dict) else x for k, x in found}
    w, a, b = (np.asarray(tree[name], np.float64) for name in "wab")
    return w + (1 if alpha is None else alpha / b.shape[-1]) * b @ a


def run(script, kernels, tokens):
    kernels = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), kernels)
    return np.asarray(jax.jit(script.model)(kernels, tokens))


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.layout(NAME, "found")
def test_the_letters_are_swapped_and_alpha_is_divided_by_each_rank(params):
    parent = para_jax.from_tree(params, alpha=5)

    assert parent.tree.layout == "lorax"
    assert {
        p: (x.a.shape, x.b.shape, x.scale) for p, x in parent.adapters.items()
    } == FOUND
    np.testing.assert_array_equal(
        parent.adapters["up"].a, params["up"]["kernel"]["b"], strict=True
    )


@pytest.mark.layout(NAME, "found")
def test_alpha_may_be_a_leaf_of_each_weight(params):
    """Read the form written by `dataclasses.asdict` of a `LoraWeight`."""
    tree = jax.tree.map(lambda x: x, params)
    for path in WEIGHTS:
        module, name = path.split("/")
        tree[module][name]["alpha"] = np.float32(5)

    parent = para_jax.from_tree(tree)
    child = para_jax.to_tree(para_jax.compress(parent, para_jax.Gamma(0.25)))

    assert {p: x.scale for p, x in parent.adapters.items()} == {
        p: scale for p, (_, _, scale) in FOUND.items()
    }
    ranks = {p: child[p.split("/")[0]][p.split("/")[1]] for p in WEIGHTS}
    assert all(x["alpha"] == x["b"].shape[-1] for x in ranks.values())


def test_the_factors_alone_are_found_too(params):
    """Read the part returned by `lorax.split_lora_params` for saving."""
    alone = {
        "up": {"kernel": {name: params["up"]["kernel"][name] for name in "ab"}},
        "conv": {"kernel": {name: params["conv"]["kernel"][name] for name in "ab"}},
    }

    parent = para_jax.from_tree(alone, alpha=5)

    assert parent.tree.layout == "lorax"
    assert {p: (x.a.shape, x.b.shape, x.scale) for p, x in parent.adapters.items()} == {
        p: FOUND[p] for p in ("conv", "up")
    }


@pytest.mark.layout(NAME, "compressed")
def test_a_child_of_the_full_budget_gives_what_lorax_computed(
    script, params, parent_file
):
    parent = para_jax.from_tree(params, alpha=5)
    child = para_jax.compress(parent, para_jax.Gamma(1.0))

    tree = para_jax.to_tree(child)

    got = run(script, merged(tree), parent_file["tokens"])
    close(got, parent_file["outputs"])
    # The formula and the model are lorax's own.
    plain = merged(params, alpha=5)
    close(run(script, plain, parent_file["tokens"]), parent_file["outputs"])
    base = merged(params, alpha=0)
    close(run(script, base, parent_file["tokens"]), parent_file["base"])


@pytest.mark.layout(NAME, "put back")
def test_the_childs_tree_has_the_parents_names_and_its_own_ranks(params):
    parent = para_jax.from_tree(params, alpha=5)
    child = para_jax.compress(parent, para_jax.Gamma(0.25))

    tree = para_jax.to_tree(child)

    k = para_jax.layouts.module_ranks(child)
    assert k == {"conv/kernel": 2, "embed/embedding": 1} | {
        "square/kernel": 1,
        "up/kernel": 2,
    }
    assert shapes(tree) == {
        "conv/bias": (6,),
        "conv/kernel/a": (1, 2, 6),
        "conv/kernel/b": (3, 5, 2),
        "conv/kernel/w": (3, 5, 6),
        "embed/embedding/a": (1, 5),
        "embed/embedding/b": (11, 1),
        "embed/embedding/w": (11, 5),
        "square/kernel/a": (1, 8),
        "square/kernel/b": (8, 1),
        "square/kernel/w": (8, 8),
        "up/kernel/a": (2, 8),
        "up/kernel/b": (6, 2),
        "up/kernel/w": (6, 8),
    }


@pytest.mark.layout(NAME, "forward")
def test_lorax_ran_our_child_as_the_base_with_our_updates(
    script, params, parent_file, child_file
):
    """Check that the file's child is current and that lorax's outputs are NumPy's."""
    parent = para_jax.from_tree(params, alpha=5)
    child = para_jax.compress(parent, para_jax.Gamma(script.GAMMA))

    tree = para_jax.to_tree(child)

    for path, value in jax.tree.leaves_with_path(script.nested(child_file)):
        module, weight, name = (x.key for x in path)
        close(tree[module][weight][name], value)
    kernels = merged(params, alpha=0)
    for path in WEIGHTS:
        module, weight = path.split("/")
        if module in child.adapters:
            x = child.adapters[module]
            delta = np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)
            kernels[module][weight] += delta.reshape(kernels[module][weight].shape)
    close(child_file["outputs"], run(script, kernels, parent_file["tokens"]))


def test_a_masked_child_made_inside_jit_is_put_back(script, params, parent_file):
    @jax.jit
    def cut(params):
        parent = para_jax.from_tree(params, alpha=5)
        spectra = para_jax.decompose(parent.adapters)
        kept = para_jax.masks(spectra, para_jax.Gamma(0.25))
        adapters = para_jax.repack(spectra, kept, parent.adapters, form="masked")
        return para_jax.to_tree(
            para_jax.Checkpoint(adapters=adapters, tree=parent.tree)
        )

    tree = cut(params)

    parent = para_jax.from_tree(params, alpha=5)
    child = para_jax.compress(parent, para_jax.Gamma(0.25))
    want = run(script, merged(para_jax.to_tree(child)), parent_file["tokens"])
    assert shapes(tree) == shapes(params)
    close(run(script, merged(tree), parent_file["tokens"]), want)


def test_a_child_is_a_parent_again_though_a_rank_of_one_fits_every_axis(params):
    """A convolution's `a` of rank one is `[1, 1, out]`."""
    parent = para_jax.from_tree(params, alpha=5)
    child = para_jax.compress(parent, para_jax.Rank(1))
    tree = para_jax.to_tree(child)
    tree["conv"]["kernel"] |= {
        "a": tree["conv"]["kernel"]["a"][:, :1],
        "b": tree["conv"]["kernel"]["b"][..., :1],
    }

    again = para_jax.from_tree(tree, alpha=1)

    x = again.adapters["conv"]
    assert (x.a.shape, x.b.shape) == ((15, 1), (1, 6))


def test_alpha_is_asked_for(params):
    with pytest.raises(
        ValueError, match=r"'conv': .* alpha=: alpha of lorax.LoraWeight"
    ):
        para_jax.from_tree(params)


def test_square_factors_without_their_weight_fit_two_layouts(params):
    alone = {"square": {"kernel": {x: params["square"]["kernel"][x] for x in "ab"}}}

    with pytest.raises(ValueError, match=r"'square.*lorax and linen both fit"):
        para_jax.from_tree(alone, alpha=5)

    found = para_jax.from_tree(alone, alpha=5, layout="lorax")
    assert found.adapters["square"].a.shape == (8, 7)
    beside = para_jax.from_tree({"square": params["square"]}, alpha=5)
    assert beside.tree.layout == "lorax"


def test_factors_of_another_weight_are_refused(params):
    tree = {"up": {"kernel": params["up"]["kernel"] | {"w": np.zeros((6, 9))}}}

    with pytest.raises(ValueError, match=r"'up'.* do not fit their kernel \[6, 9\]"):
        para_jax.from_tree(tree, alpha=5)
