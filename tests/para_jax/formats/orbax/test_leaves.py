"""Test trees with non-array leaves: read, compressed and put back as Orbax does.

The oracle is Orbax's own `load` of the whole checkpoint, before and after.
"""

import json
import logging
import shutil
import types
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp_v0
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

import para_jax as para
from tests.para_jax.formats.orbax.writers import (
    with_checkpoint_manager,
    with_named_items,
    with_pytree_checkpointer,
    with_standard_checkpointer,
    with_v1,
    with_v1_training_checkpointer,
)

# Public functions must work in JAX's default precision.
pytestmark = pytest.mark.user_defaults

M, N, R = 7, 5, 3


def array(*shape, seed=0, dtype="f4"):
    rng = np.random.default_rng([seed, *shape])
    return rng.standard_normal(shape).astype(dtype)


LEAVES = {
    "int": 3,
    "large int": 2**40,
    "float": 2.5,
    "infinity": float("inf"),
    "bool": True,
    "str": "ü b",
    "empty str": "",
    "None": None,
    "empty dict": {},
    "empty list": [],
    "empty tuple": (),
    "nested": {"a": {}, "b": [None, {"c": ()}], "d": False},
    "list": [1, False, array(2), {"e": 0.5}],
    "key": jax.random.key(7),
    "keys": jax.random.split(jax.random.key(7), 3),
    "rbg key": jax.random.key(1, impl="rbg"),
    "raw key": jax.random.PRNGKey(3),
    "uint32": np.arange(6, dtype=np.uint32).reshape(3, 2),
    "0-d": np.array(3.5),
    "on device": jnp.arange(5),
    "bfloat16": array(3, 2, dtype=ml_dtypes.bfloat16),
    "float8": array(3, 2, dtype=ml_dtypes.float8_e4m3fn),
    "optax": optax.adam(1e-3).init({"w": np.ones(3, "f4")}),
}
NUMPY = {
    "np.float32": np.float32(16),
    "np.float64": np.float64(0.1),
    "np.int64": np.int64(5),
    "np.bool": np.bool_(True),
    "np.bfloat16": ml_dtypes.bfloat16(1.5),
}
TEXTS = {"str", "empty str"}


def tree_with(**leaves):
    return {
        "q": {
            "kernel": array(M, N),
            "lora_a": array(M, R, seed=1),
            "lora_b": array(R, N, seed=2),
        },
        **leaves,
    }


# Kinds each writer refuses itself: the others share one checkpoint.
WRITERS = {
    with_v1: set(NUMPY),
    with_v1_training_checkpointer: set(NUMPY),
    with_pytree_checkpointer: {"np.bool", "np.bfloat16"},
    with_standard_checkpointer: TEXTS,
    with_checkpoint_manager: TEXTS,
    with_named_items: {"np.bool", "np.bfloat16"},
}
adapters_only = pytest.mark.parametrize("adapters_only", [False, True])


def restored(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns about a missing target tree.
        return ocp.load(path)


def assert_same(got, want):
    """Check structure, types and bits; NumPy may stand for an array on a device."""
    one, two = (jax.tree.flatten_with_path(x) for x in (got, want))
    assert one[1] == two[1]
    for (path, x), (_, y) in zip(one[0], two[0], strict=True):
        name = jax.tree_util.keystr(path)
        if not isinstance(y, np.ndarray | jax.Array):
            assert (type(x), x) == (type(y), y), name
            continue
        assert x.dtype == y.dtype, name
        if jax.dtypes.issubdtype(y.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(x) == jax.random.key_impl(y), name
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.shape == y.shape, name
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), name


def check_child(source, target, *, adapters_only):
    """Compress a checkpoint, and compare its child with the parent, by Orbax."""
    parent = para.load(source, adapters_only=adapters_only)
    child = para.compress(parent, para.Gamma(0.67))
    para.save(child, target, format="orbax")

    want, got = restored(source), restored(target)
    (adapter,) = parent.adapters.values()
    assert adapter.a.tobytes() == want["q"].pop("lora_a").tobytes()
    assert adapter.b.tobytes() == want["q"].pop("lora_b").tobytes()
    a, b = got["q"].pop("lora_a"), got["q"].pop("lora_b")
    assert (a.shape, b.shape) == ((M, 2), (2, N))
    assert_same(got, {"q": {}} if adapters_only else want)
    again = para.load(target, adapters_only=adapters_only)
    assert again.adapters.keys() == {"q"}


@adapters_only
@pytest.mark.parametrize("write", WRITERS, ids=lambda x: x.__name__)
def test_a_tree_of_all_kinds_of_leaves_comes_back(write, adapters_only, tmp_path):
    leaves = {x: y for x, y in (LEAVES | NUMPY).items() if x not in WRITERS[write]}
    if write in (with_standard_checkpointer, with_checkpoint_manager):
        leaves["list"] = leaves["list"][:2]
    path = write(tmp_path / "run", tree_with(extra=leaves))

    check_child(path, tmp_path / "child", adapters_only=adapters_only)


# v1's metadata depends on the rest of the tree, so test each kind alone too.
@pytest.mark.parametrize("write", [with_v1, with_pytree_checkpointer])
@pytest.mark.parametrize("kind", ["bool", "str", "int", "None", "key", "empty list"])
def test_a_tree_with_one_leaf_of_a_kind_comes_back(kind, write, tmp_path):
    path = write(tmp_path / "run", tree_with(leaf=LEAVES[kind]))

    check_child(path, tmp_path / "child", adapters_only=False)


def test_the_item_of_a_step_is_read_by_its_folder(tmp_path):
    path = with_named_items(tmp_path / "run", tree_with(leaf=True))

    parent = para.load(path / "model_params")

    assert parent.tree.leaves["leaf",] is True
    assert_same(parent.adapters["q"].a, restored(path)["q"]["lora_a"])


@pytest.mark.parametrize("write", [with_v1, with_pytree_checkpointer])
def test_custom_metadata_is_found_beside_a_bool(write, tmp_path):
    lora = {"lora": {"lora_rank": R, "lora_alpha": 6.0}}
    factors = {"kernel_lora_a": array(M, R), "kernel_lora_b": array(R, N)}
    tree = {"decoder": {"q": factors}, "flag": True}
    if write is with_v1:
        ocp.save(tmp_path / "run", tree, custom_metadata=lora)
    else:
        with ocp_v0.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "run", tree, custom_metadata=lora)

    assert para.load(tmp_path / "run").adapters["decoder/q"].scale == 2.0


def test_a_list_at_the_top_is_a_tree_too(tmp_path):
    ocp.save(tmp_path / "run", [tree_with(flag=True), None, "text"])

    child = para.compress(para.load(tmp_path / "run"), para.Gamma(0.67))
    para.save(child, tmp_path / "child", format="orbax")

    got = restored(tmp_path / "child")
    assert got[1:] == [None, "text"]
    assert got[0]["flag"] is True
    assert got[0]["q"]["lora_a"].shape == (M, 2)


def test_an_optimizers_empty_states_are_left_out_with_its_moments(tmp_path):
    state = optax.chain(optax.clip(1.0), optax.adam(0.1)).init(tree_with())
    tree = tree_with(opt_state=state, step=3, flag=True, notes=None)
    ocp.save(tmp_path / "run", tree)

    para.save(para.load(tmp_path / "run"), tmp_path / "child", format="orbax")

    got = restored(tmp_path / "child")
    assert got.keys() == {"q", "step", "flag", "notes"}
    assert (got["step"], got["flag"], got["notes"]) == (3, True, None)


class Block(nnx.Module):
    """A LoRA layer, with a state of random numbers and a count."""

    def __init__(self, rngs):
        self.up = nnx.LoRA(M, R, N, base_module=nnx.Linear(M, N, rngs=rngs), rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("write", [with_v1, with_standard_checkpointer])
def test_a_state_of_nnx_keeps_its_keys_and_counts(write, pure, tmp_path):
    model = Block(nnx.Rngs(0))
    model.up.lora_b[...] = array(R, N)
    state = nnx.state(model)
    path = write(tmp_path / "run", nnx.to_pure_dict(state) if pure else state)

    child = para.compress(para.load(path), para.Gamma(0.67))
    para.save(child, tmp_path / "child", format="orbax")

    want, got = restored(path), restored(tmp_path / "child")
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for tree in (want, got):
        del tree["up"]["lora_a"], tree["up"]["lora_b"]
    assert_same(got, want)
    kinds = {x.dtype for x in jax.tree.leaves(got)}
    assert any(jax.dtypes.issubdtype(x, jax.dtypes.prng_key) for x in kinds)


# --- In memory ---------------------------------------------------------------------


class Opaque:
    """Stand for a leaf of an unregistered type."""


IN_MEMORY = (
    LEAVES
    | NUMPY
    | {
        "bytes": b"ab",
        "complex": 1 + 2j,
        "object": Opaque(),
        "empty": np.zeros((0, 3)),
        "text array": np.array(["a", "b"]),
        "set": frozenset({1}),
        "shape": jax.ShapeDtypeStruct((2, 3), np.float32),
        "function": len,
        "namespace": types.SimpleNamespace(a=1),
    }
)


def test_what_is_no_factor_passes_through_in_memory_as_the_same_object():
    tree = tree_with(extra=IN_MEMORY)

    child = para.compress(para.from_tree(tree), para.Gamma(0.67))
    got = para.to_tree(child)

    assert jax.tree.structure(got) == jax.tree.structure(tree)
    assert got["q"]["lora_a"].shape == (M, 2)
    pairs = zip(*map(jax.tree.leaves, (got["extra"], tree["extra"])), strict=True)
    assert all(x is y for x, y in pairs)


@pytest.mark.parametrize(
    ("alpha", "want"),
    [
        (6, 2),
        (6.0, 2.0),
        (np.float32(6), np.float32(2)),
        (np.array(6, np.int64), np.int64(2)),
        (jnp.array(6.0), jnp.array(2.0)),
    ],
)
def test_alpha_in_a_leaf_stays_a_number_of_its_kind(alpha, want):
    weight = {"w": array(N, M), "a": array(R, M), "b": array(N, R), "alpha": alpha}
    tree = {"dense": {"kernel": weight}}

    parent = para.from_tree(tree, layout="lorax")
    got = para.to_tree(para.compress(parent, para.Gamma(0.67)))

    assert parent.adapters["dense"].scale == 2.0
    new = got["dense"]["kernel"]["alpha"]
    assert new == want
    assert isinstance(new, jax.Array) == isinstance(want, jax.Array)
    assert np.asarray(new).dtype == np.asarray(want).dtype


@pytest.mark.parametrize("alpha", ["6", True, float("nan"), np.ones(2), b"6"])
def test_alpha_in_a_leaf_that_is_no_number_is_refused_by_path(alpha):
    weight = {"w": array(N, M), "a": array(R, M), "b": array(N, R), "alpha": alpha}

    with pytest.raises(
        ValueError, match=r"'dense/kernel/alpha' is .*one finite number"
    ):
        para.from_tree({"dense": {"kernel": weight}}, layout="lorax")


# --- Written ----------------------------------------------------------------------


def test_numpy_scalars_in_memory_are_saved_as_arrays_and_all_else_as_it_is(tmp_path):
    tree = tree_with(extra=LEAVES | NUMPY)

    child = para.compress(para.from_tree(tree), para.Gamma(0.67))
    para.save(child, tmp_path / "child", format="orbax")

    got = restored(tmp_path / "child")["extra"]
    with_v1(
        tmp_path / "by Orbax", LEAVES | {x: np.asarray(y) for x, y in NUMPY.items()}
    )
    assert_same(got, restored(tmp_path / "by Orbax"))


REFUSED = {
    "bytes": (b"ab", "is of type bytes"),
    "complex": (1 + 2j, "is of type complex"),
    "object": (Opaque(), "is of type Opaque"),
    "shape": (jax.ShapeDtypeStruct((2,), "f4"), "is of type ShapeDtypeStruct"),
    "large int": (2**70, "is 1180591620717411303424"),
    "empty": (np.zeros((0, 3)), r"has shape \[0, 3\], without any entry"),
    "empty on device": (jnp.zeros((2, 0)), r"has shape \[2, 0\], without any entry"),
    "text": (np.array(["a"]), "is of str32"),
    "objects": (np.array([None, 1]), "is of object"),
    "time": (np.array(["2020"], "datetime64[s]"), r"is of datetime64\[s\]"),
    "long double": (np.ones(2, np.longdouble), "is of (longdouble|float128)"),
    "float8": (np.ones(2, ml_dtypes.float8_e4m3), "is of float8_e4m3"),
}


@pytest.mark.parametrize(("leaf", "what"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_orbax_cannot_hold_is_refused_by_its_path(leaf, what, tmp_path):
    parent = para.from_tree(tree_with(extra={"here": [1, leaf]}))

    with pytest.raises(ValueError, match=rf"^'extra/here/1' {what}.*cannot hold it"):
        para.save(parent, tmp_path / "child", format="orbax")

    assert list(tmp_path.iterdir()) == []


# --- Broken -------------------------------------------------------------------------


def damaged(path, how):
    for tree in [x.parent for x in path.rglob("_METADATA")]:
        if how == "no description":
            (tree / "_METADATA").unlink()
        elif how == "half a description":
            data = (tree / "_METADATA").read_bytes()
            (tree / "_METADATA").write_bytes(data[: len(data) // 2])
        elif how == "another description":
            (tree / "_METADATA").write_text(json.dumps({"tree_metadata": [1]}))
        else:
            shutil.rmtree(tree / "d", ignore_errors=True)
            for x in tree.glob("ocdbt.process_*"):
                shutil.rmtree(x)


@pytest.mark.parametrize(
    "how", ["no description", "half a description", "another description", "no data"]
)
@pytest.mark.parametrize("leaf", [True, "text", 1])
@pytest.mark.parametrize("write", [with_v1, with_standard_checkpointer])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_called_damaged(write, leaf, how, tmp_path):
    if write is with_standard_checkpointer and leaf == "text":
        leaf = 2.0
    path = write(tmp_path / "run", tree_with(leaf=leaf))
    damaged(path, how)

    logging.disable(logging.CRITICAL)
    with pytest.raises(ValueError, match=r"run'.*(damaged|holds neither)"):
        para.load(path)
    logging.disable(logging.NOTSET)


def test_one_array_alone_is_not_a_tree(tmp_path):
    ocp.save(tmp_path / "run", np.ones(3))

    with pytest.raises(ValueError, match="run' holds a single value"):
        para.load(tmp_path / "run")
