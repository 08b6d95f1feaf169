import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from train.models import checkpoint
from train.models.checkpoint import Leaf

LEAVES = {
    "embed/embedding": Leaf(("embed.weight",), (7, 5)),
    "head/kernel": Leaf(("head.weight",), (5, 3), checkpoint.transposed),
    "layers/up/kernel": Leaf(
        ("layers.0.up.weight", "layers.1.up.weight"),
        (2, 5, 6),
        checkpoint.transposed,
        stacked=True,
    ),
}


@pytest.fixture
def tensors():
    generator = np.random.default_rng(0)
    shapes = {
        "embed.weight": (7, 5),
        "head.weight": (3, 5),
        "layers.0.up.weight": (6, 5),
        "layers.1.up.weight": (6, 5),
    }
    return {
        name: generator.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture
def save(tensors, tmp_path):
    def whole(**changes):
        """Save the tensors; `a__b` stands for `a.b`, and None leaves one out."""
        changed = {name.replace("__", "."): x for name, x in changes.items()}
        present = {k: v for k, v in {**tensors, **changed}.items() if v is not None}
        safetensors.numpy.save_file(present, tmp_path / checkpoint.WEIGHTS)
        return tmp_path

    return whole


@pytest.fixture
def shards(tensors, tmp_path):
    """A folder with two shards, the layers of a stack in different ones."""
    places = {name: f"model-{'1' in name}.safetensors" for name in tensors}
    for file in set(places.values()):
        part = {name: x for name, x in tensors.items() if places[name] == file}
        safetensors.numpy.save_file(part, tmp_path / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (tmp_path / checkpoint.INDEX).write_text(json.dumps(index))
    return tmp_path


def assert_are_the_tensors(params, tensors, dtype=np.float32):
    want = {k: v.astype(dtype) for k, v in tensors.items()}
    kernels = np.stack([want[f"layers.{i}.up.weight"].T for i in (0, 1)])
    np.testing.assert_array_equal(params["embed"]["embedding"], want["embed.weight"])
    np.testing.assert_array_equal(params["head"]["kernel"], want["head.weight"].T)
    np.testing.assert_array_equal(params["layers"]["up"]["kernel"], kernels)
    leaves = (params["embed"], params["head"], params["layers"]["up"])
    assert {x.dtype for leaf in leaves for x in leaf.values()} == {np.dtype(dtype)}


def test_one_file_becomes_nested_params(save, tensors):
    assert_are_the_tensors(checkpoint.load(save(), LEAVES), tensors)


def test_shards_become_the_same_params(shards, tensors):
    assert_are_the_tensors(checkpoint.load(shards, LEAVES), tensors)


def test_the_dtype_is_the_one_asked_for(save, tensors):
    got = checkpoint.load(save(), LEAVES, dtype=ml_dtypes.bfloat16)

    assert_are_the_tensors(got, tensors, ml_dtypes.bfloat16)


def test_a_bfloat16_file_stays_bfloat16_or_becomes_float32(save, tensors):
    narrow = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    folder = save(**{k.replace(".", "__"): v for k, v in narrow.items()})

    got = checkpoint.load(folder, LEAVES)
    wide = checkpoint.load(folder, LEAVES, dtype=np.float32)

    assert_are_the_tensors(got, narrow, ml_dtypes.bfloat16)
    assert_are_the_tensors(wide, narrow, np.float32)


def test_arrays_lie_in_memory_in_the_order_of_their_axes(save):
    got = checkpoint.load(save(), LEAVES)

    assert got["head"]["kernel"].flags.c_contiguous
    assert got["layers"]["up"]["kernel"].flags.c_contiguous


def test_a_stack_of_one_layer_keeps_its_axis(save, tensors):
    stack = Leaf(("head.weight",), (1, 3, 5), stacked=True)

    got = checkpoint.load(save(), {"x": stack}, ignored=["*.up.weight", "embed.*"])

    np.testing.assert_array_equal(got["x"], tensors["head.weight"][None])


def test_all_that_does_not_fit_is_listed_at_once(save):
    folder = save(
        embed__weight=None,
        layers__0__up__weight=None,
        extra__weight=np.zeros(2, np.float32),
        text__weight=np.zeros(2, np.float32),
        text__bias=np.zeros(2, np.float32),
        head__weight=np.zeros((3, 4), np.float32),
        layers__1__up__weight=np.zeros((4, 5), np.float32),
    )

    with pytest.raises(ValueError, match="not those of the model") as caught:
        checkpoint.load(folder, LEAVES, ignored=["text.*"])

    said = str(caught.value)
    assert "Missing: ['embed.weight', 'layers.0.up.weight']" in said
    assert "Unexpected: ['extra.weight']" in said
    assert "head.weight is (3, 4), which becomes (4, 3), expected (5, 3)" in said
    assert "layers.1.up.weight is (4, 5), which becomes (5, 4), expected (5, 6)" in said


def test_a_tensor_that_cannot_be_converted_is_misshapen(save):
    def halves(x):
        return x.reshape(2, -1, 5)

    leaves = {**LEAVES, "embed/embedding": Leaf(("embed.weight",), (2, 4, 5), halves)}

    message = r"embed.weight is \(7, 5\), which cannot be converted, expected \(2, 4, 5"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(save(), leaves)


def test_a_stack_of_two_dtypes_needs_the_dtype(save, tensors):
    first = tensors["layers.0.up.weight"].astype(np.float16)
    folder = save(layers__0__up__weight=first)

    with pytest.raises(ValueError, match=r"'layers.1.up.weight' is of float32, and"):
        checkpoint.load(folder, LEAVES)
    got = checkpoint.load(folder, LEAVES, dtype=np.float32)
    np.testing.assert_array_equal(got["layers"]["up"]["kernel"][0], first.T)


def test_a_truncated_file_is_named(save):
    file = save() / checkpoint.WEIGHTS
    file.write_bytes(file.read_bytes()[:-3])

    with pytest.raises(ValueError, match=r"model.safetensors' is not a whole"):
        checkpoint.load(file.parent, LEAVES)


def test_an_index_that_names_an_absent_shard_says_which(shards):
    (shards / "model-True.safetensors").unlink()

    with pytest.raises(FileNotFoundError, match=r"names \['model-True.safetensors'\]"):
        checkpoint.load(shards, LEAVES)


def test_a_shard_without_a_tensor_that_the_index_gives_it_is_named(shards, tensors):
    one = {"head.weight": tensors["head.weight"]}
    safetensors.numpy.save_file(one, shards / "model-False.safetensors")

    lost = "embed.weight in model-False.*layers.0.up.weight in model-False.safetensors"
    with pytest.raises(ValueError, match=lost):
        checkpoint.load(shards, LEAVES)


@pytest.mark.parametrize(
    "index", ["[", "{}", '{"weight_map": {"x": "../x.safetensors"}}', "[1]"]
)
def test_a_damaged_index_is_named(shards, index):
    (shards / checkpoint.INDEX).write_text(index)

    with pytest.raises(ValueError, match=r"model.safetensors.index.json'"):
        checkpoint.load(shards, LEAVES)


def test_a_pickle_is_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")

    with pytest.raises(
        FileNotFoundError, match=r"pytorch_model.bin' is a pickle.*Conv"
    ):
        checkpoint.load(tmp_path, LEAVES)


def test_an_empty_folder_says_what_is_expected(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"expected model.safetensors, or shards"
    ):
        checkpoint.load(tmp_path, LEAVES)


@pytest.mark.parametrize("dtype", [None, np.float16])
def test_memory_is_that_of_the_params_and_one_tensor(tmp_path, dtype):
    layers, wide = 5, 2**18
    names = tuple(f"layers.{i}.weight" for i in range(layers))
    file = {name: np.ones((2, wide), np.float32) for name in names}
    file["embed.weight"] = np.ones((3, wide), np.float32)
    safetensors.numpy.save_file(file, tmp_path / checkpoint.WEIGHTS)
    leaves = {
        "embed": Leaf(("embed.weight",), (wide, 3), checkpoint.transposed),
        "layers": Leaf(names, (layers, wide, 2), checkpoint.transposed, stacked=True),
    }
    del file

    tracemalloc.start()
    try:
        params = checkpoint.load(tmp_path, leaves, dtype=dtype)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    size = sum(x.nbytes for x in params.values())
    assert size <= peak < size + 3 * wide * 4 + 2**17


@pytest.mark.parametrize("base", ["model.language.", "model.", ""])
def test_the_base_of_the_names_is_found(tensors, tmp_path, base):
    named = {base + name: x for name, x in tensors.items()}
    safetensors.numpy.save_file(named, tmp_path / checkpoint.WEIGHTS)

    got = checkpoint.load(tmp_path, LEAVES, bases=["model.language.", "model.", ""])

    assert_are_the_tensors(got, tensors)


def test_without_any_base_the_first_is_what_is_missing(save):
    with pytest.raises(ValueError, match=r"Missing: \['a.embed.weight', 'a.head"):
        checkpoint.load(save(), LEAVES, bases=["a.", "b."])


def test_one_tensor_may_be_divided_among_leaves(save, tensors):
    def rows(start, stop):
        return Leaf(("head.weight",), (5, stop - start), lambda x: x[start:stop].T)

    leaves = {"first": rows(0, 2), "second": rows(2, 3)}
    got = checkpoint.load(save(), leaves, ignored=["*.up.weight", "embed.*"])

    joined = np.concatenate([got["first"], got["second"]], axis=1)
    np.testing.assert_array_equal(joined, tensors["head.weight"].T)
