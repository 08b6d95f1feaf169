"""Test the norms of a base's kernels against NumPy's, from trees and folders."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import para_jax as para

rng = np.random.default_rng(3)
UP = rng.normal(size=(6, 9)).astype(np.float32)
DOWN = rng.normal(size=(3, 9, 6)).astype(np.float32)


def adapter(*shape, stack=()):
    m, n = shape
    return para.Adapter(
        np.ones((*stack, m, 2), np.float32), np.ones((*stack, 2, n), np.float32)
    )


ADAPTERS = {
    "bert/layer/0/up": adapter(6, 9),
    "layers/down": adapter(9, 6, stack=(3,)),
}


def test_norms_of_a_tree_are_numpy_s():
    base = {
        "bert": {"layer": {"0": {"up": {"kernel": UP, "bias": np.ones(9)}}}},
        "layers": {"down": {"kernel": DOWN}},
    }
    norms = para.kernel_norms(base, ADAPTERS)
    np.testing.assert_allclose(norms["bert/layer/0/up"], np.linalg.norm(UP), rtol=1e-6)
    wanted = [np.linalg.norm(x) for x in DOWN]
    np.testing.assert_allclose(norms["layers/down"], wanted, rtol=1e-6)
    # And they are what a score takes.
    policy = para.Rank(1, score=para.Score(norms=norms))
    assert para.compress(ADAPTERS, policy).report.kept_rank == 4


def test_axes_of_heads_do_not_matter():
    base = {"bert/layer/0/up/kernel": UP.reshape(6, 3, 3)}
    norms = para.kernel_norms(base, {"bert/layer/0/up": adapter(6, 9)})
    np.testing.assert_allclose(norms["bert/layer/0/up"], np.linalg.norm(UP), rtol=1e-6)


def test_kernels_of_a_folder_are_found_under_other_prefixes(tmp_path):
    one = {"layer.0.up.weight": np.ascontiguousarray(UP.T).astype(ml_dtypes.bfloat16)}
    two = {"layer.0.up.bias": np.ones(9, np.float32)}
    safetensors.numpy.save_file(one, tmp_path / "model-00001-of-00002.safetensors")
    safetensors.numpy.save_file(two, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({}))

    norms = para.kernel_norms(tmp_path, {"bert/layer/0/up": adapter(6, 9)})

    wanted = np.linalg.norm(UP.astype(ml_dtypes.bfloat16).astype(float))
    np.testing.assert_allclose(norms["bert/layer/0/up"], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({}, "the base has no kernel of that path"),
        ({"other/kernel": UP}, "'bert/layer/0/up': the base has no kernel"),
        (
            {"a/bert/layer/0/up/kernel": UP, "b/bert/layer/0/up/kernel": UP},
            "several kernels of that path, got 2: a/bert/layer/0/up, b/bert/layer/0/up",
        ),
        ({"up/kernel": UP.astype(np.int8)}, "is of int8, expected a floating point"),
        (
            {"up/kernel": UP.astype(ml_dtypes.float8_e4m3fn)},
            "is of float8_e4m3fn, expected a floating point",
        ),
        ({"bert/layer/0/up/kernel": UP[:, :4]}, r"is \[6, 4\], expected \[6, 9\]"),
    ],
)
def test_other_bases_are_refused(base, message):
    with pytest.raises(ValueError, match=message):
        para.kernel_norms(base, {"bert/layer/0/up": adapter(6, 9)})


def test_a_folder_without_tensors_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no \*.safetensors"):
        para.kernel_norms(tmp_path, ADAPTERS)


def test_one_kernel_is_not_that_of_two_adapters():
    two = {"m/layer/0/up": adapter(6, 9), "m/layer/1/up": adapter(6, 9)}
    with pytest.raises(ValueError, match="would both be the kernel 'up/kernel'"):
        para.kernel_norms({"up/kernel": UP}, two)


def test_the_longest_name_is_the_kernel():
    base = {"layer/0/up/kernel": UP, "up/kernel": 2 * UP, "0/up/kernel": 3 * UP}
    norms = para.kernel_norms(base, {"bert/layer/0/up": adapter(6, 9)})
    np.testing.assert_allclose(norms["bert/layer/0/up"], np.linalg.norm(UP), rtol=1e-6)


def test_a_shared_update_has_the_norm_of_its_owner():
    x = adapter(6, 9)
    both = para.Checkpoint(
        adapters={"enc/up": x, "dec/up": x}, shared={"dec/up": "enc/up"}
    )
    norms = para.kernel_norms({"enc/up/kernel": UP}, both)
    assert [*norms] == ["enc/up"]
    policy = para.Rank(1, score=para.Score(norms=norms))
    assert para.compress(both, policy).report.kept_rank == 1


def test_quantised_and_damaged_files_are_refused(tmp_path):
    eight = {"up.weight": np.ascontiguousarray(UP.T).astype(ml_dtypes.float8_e4m3fn)}
    safetensors.numpy.save_file(eight, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is of F8_E4M3, expected a floating point"):
        para.kernel_norms(tmp_path, {"up": adapter(6, 9)})
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"model.safetensors' is not a whole"):
        para.kernel_norms(tmp_path, {"up": adapter(6, 9)})
