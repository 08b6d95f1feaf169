"""Test keras-hub's `*.lora.h5`: files written by h5py as keras-hub 0.32.0 does.

tests/interop/test_keras_hub.py has keras-hub itself read and write them.
"""

import h5py
import numpy as np
import pytest

import para_jax
from para_jax import cli

RANK = 3
# The kernels of a query with two heads, of an output, of a Dense.
PATHS = ("lora/4", "lora/7", "lora/10")
SHAPES = {10: ((2, 6), 4), 7: ((2, 4), 6), 4: ((6,), 7)}


def factors(rank=RANK, dtype="float32"):
    random = np.random.default_rng(0)
    return {
        i: [
            random.normal(size=size).astype(dtype)
            for size in ((*inputs, rank), (rank, outputs))
        ]
        for i, (inputs, outputs) in SHAPES.items()
    }


def write(path, found=None, **more):
    """Write a file as `Backbone.save_lora_weights` does."""
    found = factors() if found is None else found
    with h5py.File(path, "w") as file:
        file["lora/vars/rank"] = RANK
        for i, (a, b) in found.items():
            file[f"lora/{i}/vars/lora_kernel_a"] = a
            file[f"lora/{i}/vars/lora_kernel_b"] = b
        for name, value in more.items():
            file[name] = value
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "x.lora.h5")


def raw(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, x: found.update({name: x[()]} if hasattr(x, "shape") else {})
        )
    return found


def test_every_layer_is_read_with_the_axes_of_its_kernel(file):
    parent = para_jax.load(file, scale=2.0)

    assert list(parent.adapters) == ["lora/4", "lora/7", "lora/10"]
    for i, (a, b) in factors().items():
        x = parent.adapters[f"lora/{i}"]
        want = 2.0 * np.tensordot(a, b, 1)
        np.testing.assert_allclose((x.scale * x.a @ x.b).reshape(want.shape), want)
    assert parent.layers == {
        "lora/10": para_jax.Layer(kind="einsum", window=(2, 6)),
        "lora/7": para_jax.Layer(kind="einsum", window=(2, 4)),
    }


@pytest.mark.parametrize(
    ("given", "scale"),
    [({"scale": 2.0}, 2.0), ({"alpha": 6}, 2.0), ({"alpha": {"lora/4": 3}}, None)],
)
def test_alpha_is_given(file, given, scale):
    if scale is None:
        given = {"alpha": {"lora/4": 3, "lora/7": 6, "lora/10": 9}}
        scales = [1.0, 2.0, 3.0]
    else:
        scales = [scale] * len(SHAPES)

    parent = para_jax.load(file, **given)

    assert [x.scale for x in parent.adapters.values()] == scales


def test_alpha_is_asked_for(file, capsys):
    with pytest.raises(
        ValueError, match=r"does not record alpha.*alpha=.*scale=.*: 1 "
    ):
        para_jax.load(file)
    with pytest.raises(ValueError, match="alpha= has no entry for the layer 'lora/4'"):
        para_jax.load(file, alpha={"lora/7": 1.0})
    with pytest.raises(ValueError, match="alpha= names 'lora/40'"):
        para_jax.load(file, alpha=dict.fromkeys([*PATHS, "lora/40"], 1.0))
    with pytest.raises(ValueError, match="not both"):
        para_jax.load(file, alpha=1.0, scale=1.0)
    with pytest.raises(ValueError, match="finite"):
        para_jax.load(file, scale=float("nan"))

    assert cli.main(["inspect", str(file)]) == 2
    assert "--scale" in capsys.readouterr().err
    assert cli.main(["inspect", str(file), "--alpha", "6"]) == 0


def test_a_child_is_written_at_one_rank_with_zeros(file, tmp_path):
    parent = para_jax.load(file, scale=0.5)
    child = para_jax.compress(parent, para_jax.Gamma(0.4))
    assert len({x.rank for x in child.adapters.values()} | {0}) > 1

    para_jax.save(child, tmp_path / "child.lora.h5", format="keras")

    found = raw(tmp_path / "child.lora.h5")
    rank = max(x.rank for x in child.adapters.values())
    assert found["lora/vars/rank"] == rank
    for i, (inputs, outputs) in SHAPES.items():
        a, b = (found[f"lora/{i}/vars/lora_kernel_{side}"] for side in "ab")
        assert (a.shape, b.shape) == ((*inputs, rank), (rank, outputs))
        x = child.adapters.get(f"lora/{i}")
        want = np.zeros((*inputs, outputs)) if x is None else x.a @ x.b
        np.testing.assert_allclose(
            np.tensordot(a, b, 1), np.reshape(want, (*inputs, outputs)), atol=1e-6
        )
    again = para_jax.load(tmp_path / "child.lora.h5")
    assert {p: x.rank for p, x in again.adapters.items()} == {
        p: x.rank for p, x in child.adapters.items()
    }
    assert again.absent == child.absent
    assert again.layers == parent.layers


def test_a_layer_that_kept_nothing_is_written_as_zeros(tmp_path):
    found = factors()
    found[10][1][:] *= 1e-6
    parent = para_jax.load(write(tmp_path / "x.lora.h5", found), scale=1.0)
    child = para_jax.compress(parent, para_jax.Gamma(0.5))
    assert "lora/10" not in child.adapters

    para_jax.save(child, tmp_path / "child.lora.h5", format="keras")

    got = raw(tmp_path / "child.lora.h5")["lora/10/vars/lora_kernel_a"]
    assert got.shape[:-1] == (2, 6)
    assert not got.any()
    assert "lora/10" not in para_jax.load(tmp_path / "child.lora.h5").adapters


def test_an_adapter_of_zeros_is_refused_with_its_reason(tmp_path):
    zeros = {i: [0 * a, 0 * b] for i, (a, b) in factors().items()}

    with pytest.raises(ValueError, match=r"all of its factors are zero.*Keras merges"):
        para_jax.load(write(tmp_path / "x.lora.h5", zeros), scale=1.0)


def test_an_untrained_adapter_is_no_merged_one(tmp_path):
    """`enable_lora` makes `b` zero, and `a` random."""
    fresh = {i: [a, 0 * b] for i, (a, b) in factors().items()}

    assert (
        len(para_jax.load(write(tmp_path / "x.lora.h5", fresh), scale=1).adapters) == 3
    )


def changed(**more):
    return lambda path: write(path, **more)


def replaced(i, side, value):
    def make(path):
        found = factors()
        found[i][side] = value
        return write(path, found)

    return make


BAD = {
    "a model's weights": (
        changed(**{"layers/dense/vars/0": np.ones((3, 4))}),
        "holds 'layers/dense/vars/0', which is no LoRA factor.*save_lora_weights",
    ),
    "a half": (
        changed(**{"lora/12/vars/lora_kernel_a": np.ones((3, 2), "float32")}),
        "'lora/12' has no lora_kernel_b",
    ),
    "ranks": (
        replaced(4, 1, np.ones((2, 7), "float32")),
        r"'lora/4': lora_kernel_a \[6, 3\].*lora_kernel_b \[2, 7\]",
    ),
    "dtypes": (replaced(4, 1, np.ones((3, 7), "float16")), "in float16: expected"),
    "whole numbers": (
        lambda path: write(
            path, {4: [np.ones((6, 3), "int32"), np.ones((3, 7), "int32")]}
        ),
        "int32",
    ),
    "nothing": (lambda path: write(path, {}), "no LoRA factors"),
    "NaN": (replaced(4, 1, np.full((3, 7), np.nan, "float32")), "NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case, tmp_path):
    make, match = BAD[case]

    with pytest.raises(ValueError, match=match):
        para_jax.load(make(tmp_path / "x.lora.h5"), scale=1.0)


def test_a_truncated_file_is_named(file):
    file.write_bytes(file.read_bytes()[:400])

    with pytest.raises(ValueError, match="not a whole HDF5 file"):
        para_jax.load(file, scale=1.0)


def test_no_other_file_is_followed(file, tmp_path):
    write(tmp_path / "other.lora.h5")
    source = h5py.VirtualSource("other.lora.h5", "lora/4/vars/lora_kernel_a", (6, 3))
    layout = h5py.VirtualLayout((6, 3), "float32")
    layout[:] = source
    with h5py.File(file, "a") as opened:
        opened.create_virtual_dataset("lora/14/vars/lora_kernel_a", layout)
    with pytest.raises(ValueError, match="kept in another file"):
        para_jax.load(file, scale=1.0)


@pytest.mark.parametrize(
    "link", [h5py.ExternalLink("other.lora.h5", "lora/4"), h5py.SoftLink("/lora/4")]
)
def test_links_are_refused(file, link):
    # A layer behind one would be missing without a word.
    with h5py.File(file, "a") as opened:
        opened["lora/12"] = link

    with pytest.raises(ValueError, match="'lora/12' is a link"):
        para_jax.load(file, scale=1.0)


def test_a_second_name_is_refused(file):
    with h5py.File(file, "a") as opened:
        opened["lora/12"] = opened["lora/4"]

    with pytest.raises(ValueError, match=r"'lora/[^']*' is a link"):
        para_jax.load(file, scale=1.0)


def test_numbers_of_layers_are_no_names_for_others(tmp_path):
    x = para_jax.Adapter(np.ones((3, 1)), np.ones((1, 2)))
    for engine in ("vllm", "llamacpp", "mlx"):
        with pytest.raises(ValueError, match=r"'lora/3' is the number.*names\.to_hf"):
            para_jax.save({"lora/3": x}, tmp_path / "x", engine=engine)
    assert list(tmp_path.iterdir()) == []


def test_paths_without_a_number_are_refused(tmp_path):
    adapter = para_jax.Adapter(np.ones((3, 1)), np.ones((1, 2)))

    with pytest.raises(ValueError, match=r"'up' is no layer's number.*keras-file"):
        para_jax.save({"up": adapter}, tmp_path / "x.lora.h5", format="keras")
    assert list(tmp_path.iterdir()) == []


def test_an_embedding_is_refused(tmp_path):
    adapter = para_jax.Adapter(np.ones((3, 1)), np.ones((1, 2)))
    parent = para_jax.Checkpoint(
        adapters={"lora/1": adapter},
        layers={"lora/1": para_jax.Layer(kind="embedding")},
    )

    with pytest.raises(
        ValueError, match="'lora/1' has a layer of the kind 'embedding'"
    ):
        para_jax.save(parent, tmp_path / "x.lora.h5", format="keras")


def test_float8_is_refused(tmp_path):
    x = para_jax.Adapter(*(np.ones((2, 2), "float8_e4m3fn") for _ in "ab"))

    with pytest.raises(ValueError, match=r"float8.*Keras reads"):
        para_jax.save({"lora/1": x}, tmp_path / "x.lora.h5", format="keras")


def test_another_ending_is_refused(file, tmp_path):
    parent = para_jax.load(file, scale=1.0)

    with pytest.raises(ValueError, match=r"end it in '\.lora\.h5'"):
        para_jax.save(parent, tmp_path / "x.h5", format="keras")


def test_an_einsum_is_no_module_of_peft(file, tmp_path):
    parent = para_jax.load(file, scale=1.0)

    with pytest.raises(ValueError, match=r"'lora/7' is an einsum.*names\.to_hf"):
        para_jax.save(parent, tmp_path / "x")
    assert not (tmp_path / "x").exists()
