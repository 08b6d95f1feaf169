"""Test that Orbax checkpoints are complete, and that other writers' open anywhere.

Orbax itself reads the contents of a checkpoint.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

import para_jax as para
from tests.para_jax.formats.orbax.writers import (
    with_checkpoint_manager,
    with_pytree_checkpointer,
    with_standard_checkpointer,
    with_v1,
    with_v1_training_checkpointer,
)

# Public functions must work in JAX's default precision.
pytestmark = pytest.mark.user_defaults

ROOT = pathlib.Path(__file__).parents[4]
REAL = ROOT / "train" / "assets" / "minilm-movie-r16"
BF16 = ml_dtypes.bfloat16


def adapter(m, n, r, *, seed=0, dtype=np.float32, stack=(), **fields):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(*stack, m, r)), rng.normal(size=(*stack, r, n))
    return para.Adapter(a=a.astype(dtype), b=b.astype(dtype), **fields)


def everything():
    """Return a checkpoint with every field set, and nothing regular."""
    return para.Checkpoint(
        adapters={
            "layers/0/q": adapter(8, 6, 3, seed=1, scale=1 / 3),
            "layers/10/q": adapter(8, 6, 1, seed=2, scale=0.1, nominal=4),
            "layers/2/conv": adapter(3 * 2 * 5, 7, 2, seed=3),
            "vocabulary": adapter(11, 6, 4, seed=4, dtype=BF16),
            "scanned/mlp": adapter(5, 9, 2, seed=5, stack=(2, 3), scale=2.0),
            "half": adapter(4, 3, 6, seed=6, dtype=np.float16),  # r > m, r > n.
            "layers/0": adapter(2, 2, 1, seed=7),  # A module in a module.
        },
        layers={
            "layers/2/conv": para.Layer(kind="conv", window=(3, 2, 5)),
            "vocabulary": para.Layer(kind="embedding"),
        },
        biases={"layers/0/q": np.arange(6.0, dtype=np.float32)},
        absent={"layers/1/q": (8, 6), "gone": (3, 2)},
        extra={
            "base_model.model.head.weight": np.float32([[1, -0.0], [np.pi, 1e-30]]),
            "a/b.c/d": np.arange(6, dtype=np.int64).reshape(2, 3),
            "a": np.array([True, False]),
            "scalar": np.array(2.5, BF16),
            "count": np.array(7, np.int32),
            "0": np.array([1.5], np.float16),
            "ü b": np.array([3, 4], np.uint8),
        },
        config={
            "peft_type": "LORA",
            "r": 3,
            "lora_alpha": 0.5,
            "task_type": None,
            "target_modules": ["q", "ü"],
            "use_rslora": False,
            "alpha_pattern": {"^a.b": 1.5},
            "nested": {"empty": {}, "list": []},
        },
        provenance={"para": {"policy": "gamma 0.25", "threshold": 0.1, "n": None}},
        residual="PiSSA",
    )


def save(checkpoint, path):
    para.save(checkpoint, path, format="orbax")
    return path


def assert_same(got, want):
    """Check that two checkpoints are equal, bit for bit."""
    assert got.adapters.keys() == want.adapters.keys()
    for path, x in want.adapters.items():
        assert_array(got.adapters[path].a, x.a, path)
        assert_array(got.adapters[path].b, x.b, path)
        assert got.adapters[path].scale == x.scale
        assert got.adapters[path].nominal == x.nominal
    for field in ("extra", "biases"):
        one, two = getattr(got, field), getattr(want, field)
        assert one.keys() == two.keys()
        for name, x in two.items():
            assert_array(one[name], x, name)
    for field in ("layers", "absent", "config", "provenance", "residual"):
        assert getattr(got, field) == getattr(want, field)


def assert_array(got, want, name):
    assert isinstance(got, np.ndarray), name
    assert got.dtype == want.dtype, name
    np.testing.assert_array_equal(got, np.asarray(want), err_msg=name, strict=True)


def arrays_of(path):
    """Return the tree and the metadata, as Orbax alone reads them."""
    metadata = ocp.metadata(path)
    tree = ocp.load(path, jax.tree.map(lambda _: np.ndarray, metadata.metadata))
    return tree, metadata.custom_metadata


# --- Ours --------------------------------------------------------------------------


def test_all_that_is_saved_is_loaded(tmp_path):
    assert_same(para.load(save(everything(), tmp_path / "x")), everything())


@pytest.mark.parametrize(
    "field", ["layers", "biases", "absent", "extra", "config", "provenance", "residual"]
)
def test_any_field_may_be_empty(field, tmp_path):
    empty = "" if field == "residual" else {}
    want = dataclasses.replace(everything(), **{field: empty})

    assert_same(para.load(save(want, tmp_path / "x")), want)


def test_adapters_alone_are_a_checkpoint(tmp_path):
    want = para.Checkpoint(adapters={"q": adapter(8, 6, 3)})

    assert_same(para.load(save(want, tmp_path / "x")), want)


def test_arrays_on_a_device_are_saved_as_they_are(tmp_path):
    on_device = jax.tree.map(
        jnp.asarray, {"q": adapter(8, 6, 3), "v": adapter(5, 6, 2, dtype=BF16)}
    )

    got = para.load(save(para.Checkpoint(adapters=on_device), tmp_path / "x"))

    for path, x in on_device.items():
        assert_array(got.adapters[path].a, np.asarray(x.a), path)
        assert_array(got.adapters[path].b, np.asarray(x.b), path)


def test_a_child_is_saved_with_what_was_dropped(tmp_path):
    parent = {f"layer/{i}/q": adapter(8, 6, 3, seed=i) for i in range(3)}
    weak = parent["layer/1/q"]
    parent["layer/1/q"] = dataclasses.replace(weak, b=weak.b * 1e-3)
    child = para.compress(parent, para.Gamma(0.5))

    got = para.load(save(child, tmp_path / "x"))

    assert got.absent == {"layer/1/q": (8, 6)}
    assert_same(got, para.Checkpoint(**fields_of(child)))
    json.dumps(got.provenance)


def fields_of(checkpoint):
    names = (x.name for x in dataclasses.fields(para.Checkpoint))
    return {name: getattr(checkpoint, name) for name in names}


def test_a_child_with_nothing_left_is_a_checkpoint_too(tmp_path):
    child = para.compress({"q": adapter(8, 6, 3)}, para.Rank(0))

    got = para.load(save(child, tmp_path / "x"))

    assert got.adapters == {}
    assert got.absent == {"q": (8, 6)}


def test_the_tree_of_a_child_is_what_a_model_takes(tmp_path):
    parent = {f"layer/{i}/q": adapter(8, 6, 3, seed=i, scale=0.5) for i in range(2)}
    child = para.compress(parent, para.Gamma(0.5))

    tree, _ = arrays_of(save(child, tmp_path / "x"))

    for path, x in child.adapters.items():
        _, i, name = path.split("/")
        np.testing.assert_array_equal(tree["lora"]["layer"][i][name]["a"], x.a)
        np.testing.assert_array_equal(tree["lora"]["layer"][i][name]["b"], x.b)


def test_orbax_alone_finds_scales_and_ranks(tmp_path):
    tree, metadata = arrays_of(save(everything(), tmp_path / "x"))

    facts = metadata["para_jax"]
    assert facts["ranks"]["layers/10/q"] == 1
    assert facts["scales"]["layers/10/q"] == 0.1
    want = everything().adapters["layers/10/q"]
    np.testing.assert_array_equal(tree["lora"]["layers"]["10"]["q"]["b"], want.b)


def test_a_scale_given_for_what_holds_its_own_is_refused(tmp_path):
    save(everything(), tmp_path / "x")

    with pytest.raises(ValueError, match=r"holds its own scales.*leave out scale=2"):
        para.load(tmp_path / "x", scale=2.0)


def test_a_checkpoint_of_a_newer_para_jax_is_refused(tmp_path):
    tree, metadata = arrays_of(save(everything(), tmp_path / "x"))
    metadata["para_jax"]["version"] = 99
    ocp.save(tmp_path / "newer", tree, custom_metadata=metadata)

    with pytest.raises(ValueError, match=r"newer.*update yours"):
        para.load(tmp_path / "newer")


# --- From PEFT and back --------------------------------------------------------------


def files_of(folder):
    weights = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    return json.loads((folder / "adapter_config.json").read_text()), weights


@pytest.mark.parametrize("profile", ["ragged", "padded"])
def test_the_way_over_orbax_changes_no_bit_of_a_peft_adapter(profile, tmp_path):
    child = para.compress(para.load(REAL), para.Gamma(0.0625))
    para.save(child, tmp_path / "straight", profile=profile)
    over = para.load(save(child, tmp_path / "orbax"))

    para.save(over, tmp_path / "over", profile=profile)

    (got_config, got), (want_config, want) = (
        files_of(tmp_path / x) for x in ("over", "straight")
    )
    assert child.absent  # Six modules kept nothing.
    assert got_config == want_config
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert_array(got[name], x, name)


def test_a_real_parent_comes_back_with_its_own_tensors(tmp_path):
    save(para.load(REAL), tmp_path / "orbax")

    para.save(para.load(tmp_path / "orbax"), tmp_path / "peft")

    (_, got), (_, want) = (files_of(x) for x in (tmp_path / "peft", REAL))
    assert got.keys() == want.keys()
    for name, x in want.items():
        # Its scale of 2 is now in B, without any rounding.
        assert_array(got[name], 2 * x if "lora_B" in name else x, name)


# --- Those of others -----------------------------------------------------------------


def params():
    """Return hand-made params of two modules, among other leaves."""
    rng = np.random.default_rng(0)

    def random(*shape, dtype=np.float32):
        return rng.normal(size=shape).astype(dtype)

    return {
        "layers": {
            "0": {"q": {"a": random(8, 3), "b": random(3, 6), "kernel": random(8, 6)}},
            "1": {"q": {"a": random(8, 1, dtype=BF16), "b": random(1, 6, dtype=BF16)}},
        },
        "norm": {"scale": random(6)},
    }


WRITERS = [
    with_standard_checkpointer,
    with_pytree_checkpointer,
    with_checkpoint_manager,
    with_v1,
    with_v1_training_checkpointer,
]
every_writer = pytest.mark.parametrize("write", WRITERS, ids=lambda x: x.__name__)


@every_writer
def test_whatever_wrote_it_its_adapters_open(write, tmp_path):
    path = write(tmp_path / "x", params())

    got = para.load(path, scale=0.5)

    layers = params()["layers"]
    assert got.adapters.keys() == {"layers/0/q", "layers/1/q"}
    for i, x in enumerate(got.adapters.values()):
        assert_array(x.a, layers[str(i)]["q"]["a"], "a")
        assert_array(x.b, layers[str(i)]["q"]["b"], "b")
        assert x.scale == 0.5
    assert got.config == got.provenance == got.extra == {}


@every_writer
def test_a_scale_that_is_not_known_is_asked_for(write, tmp_path):
    path = write(tmp_path / "x", params())

    with pytest.raises(ValueError, match="does not record the scale of a @ b"):
        para.load(path)


@every_writer
def test_what_to_params_made_comes_back(write, tmp_path):
    adapters = everything().adapters
    path = write(tmp_path / "x", para.to_params(adapters))

    got = para.load(path, scale=1.0).adapters

    assert got.keys() == adapters.keys()
    for name, x in adapters.items():
        want = x.a.astype(np.float64) @ x.b * x.scale
        delta = got[name].a.astype(np.float64) @ got[name].b
        rtol = float(ml_dtypes.finfo(x.a.dtype).eps)
        np.testing.assert_allclose(delta, want, rtol=0, atol=rtol * np.abs(want).max())


def test_lists_and_integer_keys_are_names_as_orbax_writes_them(tmp_path):
    x = adapter(8, 6, 3)
    ocp.save(
        tmp_path / "x",
        {"layers": [{"a": x.a, "b": x.b}], "m": {3: {"a": x.a, "b": x.b}}},
    )

    got = para.load(tmp_path / "x", scale=1.0)

    assert got.adapters.keys() == {"layers/0", "m/3"}


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize(
    "tree", [{"params": {"kernel": np.ones((3, 2))}}, {"step": np.array(3)}]
)
def test_a_checkpoint_without_adapters_says_so(tree, scale, tmp_path):
    ocp.save(tmp_path / "x", tree)

    with pytest.raises(ValueError, match=r"x'.* holds no adapters.*'a' and 'b'"):
        para.load(tmp_path / "x", scale=scale)


def test_a_factor_alone_is_refused_by_path(tmp_path):
    tree = params()
    del tree["layers"]["1"]["q"]["b"]
    ocp.save(tmp_path / "x", tree)

    with pytest.raises(ValueError, match=r"'layers/1/q' has the factor 'a' alone"):
        para.load(tmp_path / "x", scale=1.0)


def test_the_folder_of_all_steps_asks_for_one(tmp_path):
    with_checkpoint_manager(tmp_path / "run", params())

    with pytest.raises(ValueError, match=r"run'.*(step|neither)"):
        para.load(tmp_path / "run", scale=1.0)


# --- Broken --------------------------------------------------------------------------


# Orbax reads in tasks of an event loop, and closes it when the first of them fails.
fails_in_tasks = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def files_in(folder):
    return sorted(x.relative_to(folder) for x in folder.rglob("*") if x.is_file())


@fails_in_tasks
def test_whatever_file_is_missing_the_folder_is_named_or_nothing_is_lost(tmp_path):
    whole = save(everything(), tmp_path / "whole")
    assert len(files_in(whole)) > 4
    refused = 0
    for i, name in enumerate(files_in(whole)):
        broken = tmp_path / f"broken{i}"
        shutil.copytree(whole, broken)
        (broken / name).unlink()

        try:
            got = para.load(broken)
        except (ValueError, FileNotFoundError) as error:
            assert broken.name in str(error)  # noqa: PT017
            refused += 1
        else:
            assert_same(got, everything())
    assert refused >= 3


@fails_in_tasks
def test_whatever_file_is_cut_short_the_folder_is_named_or_nothing_is_lost(tmp_path):
    whole = save(everything(), tmp_path / "whole")
    refused = 0
    for i, name in enumerate(files_in(whole)):
        broken = tmp_path / f"broken{i}"
        shutil.copytree(whole, broken)
        data = (broken / name).read_bytes()
        (broken / name).write_bytes(data[: len(data) // 2])

        try:
            got = para.load(broken)
        except (ValueError, FileNotFoundError) as error:
            assert broken.name in str(error)  # noqa: PT017
            refused += 1
        else:
            assert_same(got, everything())
    assert refused >= 3


@pytest.mark.parametrize("how", ["missing", "cut short"])
def test_ours_without_its_metadata_is_not_taken_for_that_of_others(how, tmp_path):
    # Its scales are lost, and one given scale could not be right for every module.
    path = save(
        para.Checkpoint(adapters={"q": adapter(8, 6, 3, scale=2.0)}), tmp_path / "x"
    )
    metadata = path / "_CHECKPOINT_METADATA"
    if how == "missing":
        metadata.unlink()
    else:
        metadata.write_bytes(metadata.read_bytes()[:100])

    with pytest.raises(ValueError, match="x'"):
        para.load(path, scale=1.0)


# --- Another topology ----------------------------------------------------------------

SAVE_ON_EIGHT = """
import pathlib, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from orbax.checkpoint import v1 as ocp
import para_jax as para

assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))

def sharded(value, *spec):
    return jax.device_put(value, NamedSharding(mesh, P(*spec)))

def adapter(m, n, r, scale):
    a = np.arange(m * r, dtype=np.float32).reshape(m, r)
    b = -np.arange(r * n, dtype=np.float32).reshape(r, n)
    return para.Adapter(a=sharded(a, "x"), b=sharded(b, None, ("x", "y")), scale=scale)

adapters = {"layers/0/q": adapter(8, 16, 3, 0.5), "layers/1/q": adapter(4, 8, 1, 3.0)}
assert len(adapters["layers/0/q"].b.sharding.device_set) == 8
head = np.arange(8.0, dtype=np.float32)
extra = {"head": sharded(head, "x"), "step": sharded(np.int32(3))}
folder = pathlib.Path(sys.argv[1])
checkpoint = para.Checkpoint(adapters=adapters, extra=extra)
para.save(checkpoint, folder / "ours", format="orbax")
ocp.save(folder / "params", para.to_params(adapters))
q = {"lora_a": adapters["layers/0/q"].a, "lora_b": adapters["layers/0/q"].b}
keys = sharded(jax.random.split(jax.random.key(7), 8), ("x", "y"))
assert len(keys.sharding.device_set) == 8
mixed = {"q": q, "flag": True, "name": "run", "step": 3, "keys": keys, "none": None}
ocp.save(folder / "mixed", mixed)
"""


@pytest.fixture(scope="module")
def saved_on_eight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run(
        [sys.executable, "-c", SAVE_ON_EIGHT, str(folder)],
        check=True,
        timeout=600,
        env=environment,
        cwd=ROOT,
    )
    assert jax.device_count() == 1
    return folder


def on_eight(m, n, r):
    a = np.arange(m * r, dtype=np.float32).reshape(m, r)
    return a, -np.arange(r * n, dtype=np.float32).reshape(r, n)


def test_what_eight_devices_saved_opens_on_one(saved_on_eight):
    got = para.load(saved_on_eight / "ours")

    assert {path: x.scale for path, x in got.adapters.items()} == {
        "layers/0/q": 0.5,
        "layers/1/q": 3.0,
    }
    for path, shape in (("layers/0/q", (8, 16, 3)), ("layers/1/q", (4, 8, 1))):
        for factor, want in zip("ab", on_eight(*shape), strict=True):
            assert_array(getattr(got.adapters[path], factor), want, path)
    assert_array(got.extra["head"], np.arange(8.0, dtype=np.float32), "head")
    assert_array(got.extra["step"], np.array(3, np.int32), "step")


def test_leaves_that_are_no_arrays_come_back_from_eight_devices(
    saved_on_eight, tmp_path
):
    parent = para.load(saved_on_eight / "mixed")
    para.save(parent, tmp_path / "child", format="orbax")
    leaves = para.load(tmp_path / "child").tree.leaves

    a, b = on_eight(8, 16, 3)
    got = parent.adapters["q"]
    np.testing.assert_array_equal(got.a @ got.b, a @ b)
    for found in (parent.tree.leaves, leaves):
        assert found["flag",] is True
        assert (found["name",], found["step",]) == ("run", 3)
        keys = jax.random.split(jax.random.key(7), 8)
        data = map(jax.random.key_data, (found["keys",], keys))
        np.testing.assert_array_equal(*data)


def test_params_of_eight_devices_open_on_one(saved_on_eight):
    got = para.load(saved_on_eight / "params", scale=1.0)

    for path, shape, scale in (
        ("layers/0/q", (8, 16, 3), 0.5),
        ("layers/1/q", (4, 8, 1), 3.0),
    ):
        a, b = on_eight(*shape)
        assert_array(got.adapters[path].a, a, path)
        assert_array(got.adapters[path].b, b * np.float32(scale), path)
