"""Check that an incomplete or broken tree is refused by the name of the module.

Every case runs on every layout, on trees written down as plain dicts.
"""

import math

import numpy as np
import pytest

import para_jax
from para_jax._adapters.messages import Argument

# A module's path, and the keys of its factors and its base kernel, by layout. A key
# that begins with the path goes on below it.
PLACES = {
    "nnx": ("block/0/up", "lora_a", "lora_b", "base_module/kernel"),
    "qwix": ("block/up", "kernel_lora_a", "kernel_lora_b", "kernel"),
    "tunix": ("layers/0/mlp/up", "kernel_lora_a", "kernel_lora_b", "kernel"),
    "gemma": ("layer_0/mlp/up", "lora/a", "lora/b", "kernel"),
    "maxtext": ("decoder/layers/mlp/up", "lora_a.kernel", "lora_b.kernel", "kernel"),
    "maxtext-qwix": (
        "decoder/layers/mlp/up",
        "kernel_lora_a",
        "kernel_lora_b",
        "kernel",
    ),
    "lorax": ("block/up", "kernel/b", "kernel/a", "kernel/w"),
    "levanter": (
        "layers/up",
        "lora/lora_A/weight",
        "lora/lora_B/weight",
        "wrapped/weight",
    ),
    "keras": ("block/up", "lora_kernel_a", "lora_kernel_b", "kernel"),
    "linen": ("block/up", "a", "b", "w"),
}
NO_ALPHA = ["nnx", "gemma"]
# Their factors are `[*stack, r, m]` and `[*stack, n, r]`; the tests transpose.
TORCH = ["levanter"]
layouts = pytest.mark.parametrize("name", list(PLACES))


def tree(name, *, a=None, b=None, kernel=None, path=None):
    """Return a tree with factors of these shapes, without those of no shape."""
    module, *keys = PLACES[name]
    if name in TORCH:
        a, b = (x and (*x[:-2], x[-1], x[-2]) for x in (a, b))
    shapes = dict(zip(keys, (a, b, kernel), strict=True))
    leaves = {f"{path or module}/{k}": s for k, s in shapes.items() if s is not None}
    return nested({k: np.ones(s, np.float32) for k, s in leaves.items()})


def nested(leaves):
    result = {}
    for path, value in leaves.items():
        *parents, name = path.split("/")
        node = result
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = value
    return result


def read(name, tree, **arguments):
    given = {} if name in NO_ALPHA else {"scale": 2.0}
    return para_jax.from_tree(tree, **given | arguments)


def test_the_table_has_all_layouts():
    # `test_slots.py` has those of several adapters.
    one = {name for name, x in para_jax.layouts.LAYOUTS.items() if not x.slots}
    assert PLACES.keys() == one


@layouts
def test_a_whole_pair_is_read(name):
    parent = read(name, tree(name, a=(5, 2), b=(2, 7), kernel=(5, 7)))

    assert parent.tree.layout == name
    assert list(parent.adapters) == [PLACES[name][0]]


@layouts
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_missing_half_is_named(name, side):
    shapes = {"a": (5, 2), "b": (2, 7)}
    half = {side: shapes[side]}

    with pytest.raises(ValueError, match=f"^'{PLACES[name][0]}' .*missing"):
        read(name, tree(name, **half, kernel=(5, 7)), layout=name)


@layouts
@pytest.mark.parametrize("kernel", [None, (5, 7)])
def test_swapped_halves_are_named(name, kernel):
    with pytest.raises(ValueError, match=f"^'{PLACES[name][0]}': .*a and b swapped"):
        read(name, tree(name, a=(2, 7), b=(5, 2), kernel=kernel), layout=name)


@layouts
def test_stacks_of_unequal_length_are_named(name):
    with pytest.raises(ValueError, match=f"^'{PLACES[name][0]}': .*stacks"):
        read(name, tree(name, a=(4, 5, 2), b=(3, 2, 7)), layout=name)


@layouts
@pytest.mark.parametrize(
    ("a", "b"), [((5, 2), (3, 7)), ((4, 5, 2), (4, 3, 7)), ((5, 4, 2), (3, 4, 7))]
)
def test_ranks_that_disagree_are_named(name, a, b):
    with pytest.raises(ValueError, match=f"^'{PLACES[name][0]}': .*ranks disagree"):
        read(name, tree(name, a=a, b=b), layout=name)


@layouts
def test_factors_that_do_not_fit_the_kernel_are_named(name):
    with pytest.raises(ValueError, match=rf"^'{PLACES[name][0]}': .*kernel \[6, 7\]"):
        read(name, tree(name, a=(5, 2), b=(2, 7), kernel=(6, 7)), layout=name)


@layouts
def test_an_axis_of_the_stack_that_shapes_do_not_tell_is_asked_for(name):
    ambiguous = tree(name, a=(5, 5, 5), b=(5, 5, 5))

    with pytest.raises(ValueError, match=f"^'{PLACES[name][0]}': .*stack_axis="):
        read(name, ambiguous, layout=name)

    parent = read(name, ambiguous, layout=name, stack_axis=0)
    assert parent.adapters[PLACES[name][0]].stack == (5,)


@layouts
def test_factors_that_are_no_floating_point_are_named(name):
    whole = tree(name, a=(5, 2), b=(2, 7), kernel=(5, 7))
    whole = nested({k: x.astype(np.int32) for k, x in flat(whole).items()})

    with pytest.raises(ValueError, match=f"^'{PLACES[name][0]}': .*floating point"):
        read(name, whole)


@layouts
def test_factors_of_no_rank_are_named(name):
    with pytest.raises(ValueError, match=f"^'{PLACES[name][0]}': .*is empty"):
        read(name, tree(name, a=(5, 0), b=(0, 7)), layout=name)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("qwix", "alpha=: alpha of the qwix.LoraRule"),
        ("tunix", "alpha=: alpha of lora_config"),
        ("maxtext", "alpha=: lora_alpha of adapter_config.json"),
        ("maxtext-qwix", "alpha=: lora.lora_alpha of the run"),
        ("lorax", "alpha=: alpha of lorax.LoraWeight"),
        ("levanter", "alpha=: alpha of the LoraConfig"),
        ("keras", "alpha=: lora_alpha of the layers"),
        ("linen", "scale=: alpha / r of the run"),
    ],
)
def test_an_alpha_that_is_not_given_is_asked_for_with_where_it_is(name, where):
    whole = tree(name, a=(5, 2), b=(2, 7), kernel=(5, 7))

    with pytest.raises(ValueError, match=f"^'{PLACES[name][0]}': .*{where}"):
        para_jax.from_tree(whole)
    with pytest.raises(ValueError, match=f"^'{PLACES[name][0]}': .*{where}"):
        para_jax.from_tree(whole, alpha={"another": 4.0})


@layouts
def test_a_scale_outside_of_the_arrays_is_asked_for_by_its_argument(name):
    asked = para_jax.layouts.LAYOUTS[name].alpha

    assert bool(asked) == (name not in NO_ALPHA)
    assert not asked or isinstance(asked.parts[0], Argument)
    assert not asked or asked.parts[0].name in ("alpha", "scale")


@pytest.mark.parametrize("name", NO_ALPHA)
@pytest.mark.parametrize("argument", ["alpha", "scale"])
def test_an_alpha_that_the_library_does_not_have_is_refused(name, argument):
    whole = tree(name, a=(5, 2), b=(2, 7), kernel=(5, 7))

    with pytest.raises(ValueError, match=f"{name} has no alpha"):
        para_jax.from_tree(whole, **{argument: 4.0})


def test_alpha_and_scale_are_not_both_taken():
    whole = tree("qwix", a=(5, 2), b=(2, 7))

    with pytest.raises(ValueError, match="alpha= or scale=, not both"):
        para_jax.from_tree(whole, alpha=4.0, scale=2.0)


@pytest.mark.parametrize("argument", ["alpha", "scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused(argument, value):
    whole = tree("qwix", a=(5, 2), b=(2, 7))

    with pytest.raises(ValueError, match=f"{argument}={value}"):
        para_jax.from_tree(whole, **{argument: value})


def test_an_alpha_a_module_gives_each_its_own_scale():
    leaves = flat(tree("qwix", a=(5, 2), b=(2, 7), path="first"))
    leaves |= flat(tree("qwix", a=(5, 4), b=(4, 7), path="second"))

    parent = para_jax.from_tree(nested(leaves), alpha={"first": 3.0, "second": 10.0})

    scales = {path: x.scale for path, x in parent.adapters.items()}
    assert scales == {"first": 1.5, "second": 2.5}


FUSED = [
    ("tunix", "layers/0/attn/kv_einsum"),
    ("tunix", "layers/0/attn/qkv_einsum"),
    ("gemma", "layer_0/attn/kv_einsum"),
    ("gemma", "layer_0/mlp/gating_einsum"),
]


@pytest.mark.parametrize(("name", "path"), FUSED)
@pytest.mark.parametrize("b", [(2, 24), (2, 5, 1, 4)])
def test_a_fused_projection_that_cannot_be_split_is_named(name, path, b):
    with pytest.raises(ValueError, match=f"^'{path}' .*cannot be split"):
        read(name, tree(name, a=(6, 2), b=b, path=path), layout=name)


def test_two_layouts_that_both_fit_are_both_named():
    square = {"mlp": {"kernel": {"a": np.ones((3, 3)), "b": np.ones((3, 3))}}}

    with pytest.raises(
        ValueError, match=r"^'mlp': the layouts lorax and linen both fit"
    ):
        para_jax.from_tree(square, scale=1.0)

    for layout, path in (("lorax", "mlp"), ("linen", "mlp/kernel")):
        parent = para_jax.from_tree(square, layout=layout, scale=1.0)
        assert list(parent.adapters) == [path]


@pytest.mark.parametrize("layout", [None, "nnx", "qwix"])
def test_two_libraries_in_one_tree_are_both_named(layout):
    """openpi, for one, names attention and feed-forward layers differently."""
    leaves = flat(tree("nnx", a=(5, 2), b=(2, 7)))
    leaves |= flat(tree("qwix", a=(5, 2), b=(2, 7)))

    with pytest.raises(ValueError, match=r"named as by (nnx, .*qwix|qwix, .*nnx): one"):
        para_jax.from_tree(nested(leaves), layout=layout, alpha=4)


@layouts
def test_the_moments_of_an_optimizer_are_no_adapters(name):
    whole = tree(name, a=(5, 2), b=(2, 7), kernel=(5, 7))

    parent = read(name, {"params": whole, "opt_state": {"0": {"mu": whole}}})

    assert list(parent.adapters) == [PLACES[name][0]]


def test_a_layout_that_the_tree_does_not_have_is_refused():
    whole = tree("qwix", a=(5, 2), b=(2, 7))

    with pytest.raises(ValueError, match="not of the layout nnx, but of qwix"):
        para_jax.from_tree(whole, layout="nnx")
    with pytest.raises(ValueError, match="Unknown layout 'flax': expected one of nnx,"):
        para_jax.from_tree(whole, layout="flax")


def test_a_tree_without_adapters_is_refused_with_what_it_holds():
    with pytest.raises(ValueError, match="mlp/kernel"):
        para_jax.from_tree({"mlp": {"kernel": np.ones((5, 7))}})


def test_a_child_that_does_not_fit_the_rank_is_not_written():
    parent = read("qwix", tree("qwix", a=(5, 2), b=(2, 7)))

    with pytest.raises(ValueError, match="A module has rank 2, above 1"):
        para_jax.to_tree(parent, rank=1)


def test_adapters_that_came_from_no_tree_are_not_written():
    parent = read("qwix", tree("qwix", a=(5, 2), b=(2, 7)))

    with pytest.raises(ValueError, match="did not come from a tree"):
        para_jax.to_tree(para_jax.Checkpoint(adapters=parent.adapters))


def flat(tree, prefix=""):
    leaves = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        leaves |= flat(value, f"{path}/") if isinstance(value, dict) else {path: value}
    return leaves
