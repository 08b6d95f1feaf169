"""Check trees that hold several adapters, written down as plain dicts."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax

SLOTS, ROOM = 3, 4
M, N = 5, 7


def module(rank=2, scale=1.5, layers=0, slots=SLOTS):
    """Return a module of tx with an adapter in slot 1, and zeros in the others."""
    stack = (layers,) if layers else ()
    rng = np.random.default_rng(0)
    a = np.zeros((*stack, slots, M, ROOM), np.float32)
    b = np.zeros((*stack, slots, ROOM, N), np.float32)
    a[..., 1 % slots, :, :rank] = rng.normal(size=(*stack, M, rank))
    b[..., 1 % slots, :rank, :] = rng.normal(size=(*stack, rank, N))
    ranks = np.full((*stack, slots), ROOM, np.int32)
    scales = np.ones((*stack, slots), np.float32)
    ranks[..., 1 % slots], scales[..., 1 % slots] = rank, scale
    kernel = np.ones((*stack, M, N), np.float32)
    return {
        "kernel": kernel,
        "lora_A": a,
        "lora_B": b,
        "lora_ranks": ranks,
        "lora_scaling": scales,
    }


def test_the_slot_is_asked_for_with_how_many_there_are():
    with pytest.raises(
        ValueError, match=r"^'up' holds 3 adapters.*slot=.: its adapter"
    ):
        para_jax.from_tree({"up": module()})


def test_one_slot_needs_no_number():
    parent = para_jax.from_tree({"up": module(slots=1)})

    assert (parent.adapters["up"].rank, parent.adapters["up"].scale) == (2, 1.5)


@pytest.mark.parametrize("slot", [-1, 3])
def test_a_slot_that_is_not_there_is_refused(slot):
    with pytest.raises(ValueError, match=f"slot={slot}: 'up' has slots 0 to 2"):
        para_jax.from_tree({"up": module()}, slot=slot)


@pytest.mark.parametrize("slot", ["a", 1.0, True])
def test_a_slot_is_a_whole_number(slot):
    read = inspect.unwrap(para_jax.from_tree)
    with pytest.raises(ValueError, match="expected a whole number"):
        read({"up": module()}, slot=slot)


def test_a_slot_of_another_library_is_refused():
    tree = {"up": {"lora_a": np.ones((5, 2)), "lora_b": np.ones((2, 7))}}

    with pytest.raises(ValueError, match="slot=1: a tree of nnx holds one adapter"):
        para_jax.from_tree(tree, slot=1)


@pytest.mark.parametrize("name", ["lora_ranks", "lora_scaling"])
def test_numbers_that_are_missing_are_named(name):
    tree = module()
    del tree[name]

    with pytest.raises(ValueError, match=rf"^'up' has no {name}.*nnx.state\(model\)"):
        para_jax.from_tree({"up": tree}, slot=1)


def test_layers_of_unequal_scale_are_named():
    tree = module(layers=2)
    tree["lora_scaling"][1, 1] = 9

    with pytest.raises(ValueError, match=r"^'up': lora_scaling of slot 1 is \[1.5, 9"):
        para_jax.from_tree({"_stacked": {"up": tree}}, slot=1)


def test_a_missing_half_is_named():
    tree = module()
    del tree["lora_B"]

    with pytest.raises(ValueError, match=r"^'up' has the factor 'lora_A' alone"):
        para_jax.from_tree({"up": tree}, slot=1)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("lora_B", (SLOTS, ROOM + 1, N), "the ranks disagree"),
        ("lora_B", (SLOTS - 1, ROOM, N), "the stacks do"),
        ("lora_B", (SLOTS, 2, ROOM, N), "not a pair"),
        ("lora_A", (M, ROOM), r"lora_A \[5, 4\], expected \[slots, in, r\]"),
        ("kernel", (M + 1, N), r"do not fit their kernel \[6, 7\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name, shape, said):
    tree = module() | {name: np.ones(shape, np.float32)}
    with pytest.raises(ValueError, match=f"^'up'.*{said}"):
        para_jax.from_tree({"up": tree}, slot=1)


def test_scale_is_in_the_tree():
    with pytest.raises(ValueError, match=r"'up' holds its own scale\. Leave"):
        para_jax.from_tree({"up": module()}, slot=1, alpha=4)


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_the_child_fills_its_slot_alone(layers, as_array):
    level = {"_stacked": {"up": module(layers=layers)}} if layers else {"up": module()}
    tree = jax.tree.map(as_array, level)

    half = para_jax.Gamma(0.5, scope="local")
    child = para_jax.compress(para_jax.from_tree(tree, slot=1), half)
    new = para_jax.to_tree(child)

    (got,), (old,) = ([y["up"] for y in (x.get("_stacked", x),)] for x in (new, tree))
    rank = para_jax.layouts.module_ranks(child)["_stacked/up" if layers else "up"]
    assert rank == 1
    assert jax.tree.map(type, new) == jax.tree.map(type, tree)
    assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, tree)
    assert (got["lora_ranks"][..., 1] == 1).all()
    assert (got["lora_scaling"][..., 1] == 1).all()
    for name in ("lora_ranks", "lora_scaling"):
        np.testing.assert_array_equal(got[name][..., ::2], old[name][..., ::2])
    product = got["lora_A"][..., 1, :, :] @ got["lora_B"][..., 1, :, :]
    want = 1.5 * old["lora_A"][..., 1, :, :] @ old["lora_B"][..., 1, :, :]
    u, s, vt = np.linalg.svd(np.asarray(want, np.float64), full_matrices=False)
    best = (u[..., :1] * s[..., None, :1]) @ vt[..., :1, :]
    np.testing.assert_allclose(product, best, atol=1e-5)


def test_the_tree_is_not_written_as_one_adapters_and_leaves_no_file(tmp_path):
    parent = para_jax.from_tree({"up": module()}, slot=1)

    with pytest.raises(ValueError, match="Orbax cannot hold a tree of tx"):
        para_jax.save(parent, tmp_path / "child", format="orbax")
    assert not list(tmp_path.iterdir())
    para_jax.save(parent, tmp_path / "child", format="peft")
    back = para_jax.load(tmp_path / "child").adapters["up"]
    old = parent.adapters["up"]
    np.testing.assert_allclose(
        back.scale * back.a @ back.b, old.scale * old.a @ old.b, rtol=1e-5
    )
