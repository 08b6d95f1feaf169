"""Test which model is meant, and what happens without it or without transformers.

The names themselves are tested with transformers, in `tests/interop`.
"""

import sys

import numpy as np
import pytest

import para_jax as para
from para_jax import names
from para_jax.names import from_config


@pytest.mark.parametrize("missing", ["transformers", "torch"])
def test_new_names_need_transformers_and_torch(missing, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setitem(sys.modules, missing, None)
    x = para.Adapter(a=np.ones((4, 1)), b=np.ones((1, 4)))

    with pytest.raises(ModuleNotFoundError, match=missing):
        names.to_installed({"model/layers/0/mlp/up_proj": x}, tmp_path)


@pytest.mark.parametrize("place", ["", "config.json", "no/such"])
def test_without_a_configuration_there_is_no_model(place, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing: expected the folder"):
        from_config.configuration(tmp_path / place)


@pytest.mark.parametrize(
    ("word", "want"),
    [
        ("gemma3", False),
        ("gemma5", False),
        ("names.toml", False),
        ("of/names.toml", False),
        ("config.json", True),
        ("google/gemma", True),
        ("./model", True),
    ],
)
def test_a_path_is_told_from_a_name(word, want):
    assert from_config.is_configuration(word) is want


def test_a_folder_of_a_models_name_is_not_meant(tmp_path, monkeypatch):
    (tmp_path / "gemma3").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)

    assert not from_config.is_configuration("gemma3")
    assert from_config.is_configuration("mine")


@pytest.mark.parametrize(
    ("content", "match"),
    [("{", "not valid JSON"), ("[]", "no model_type"), ("{}", "no model_type")],
)
def test_what_is_no_configuration_is_said_to_be_none(content, match, tmp_path):
    pytest.importorskip("transformers")
    file = tmp_path / "config.json"
    file.write_text(content)
    x = para.Adapter(a=np.ones((4, 1)), b=np.ones((1, 4)))

    with pytest.raises(ValueError, match=rf"config\.json'.*{match}"):
        names.to_installed({"model/layers/0/mlp/up_proj": x}, file)


def test_a_model_that_transformers_does_not_know_is_an_error(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "of-tomorrow"}')
    x = para.Adapter(a=np.ones((4, 1)), b=np.ones((1, 4)))

    with pytest.raises(
        ValueError, match=r"no AutoModel of the model_type 'of-tomorrow'"
    ):
        names.to_installed({"model/layers/0/mlp/up_proj": x}, tmp_path)


def test_a_tree_of_arrays_has_no_names_of_an_older_transformers(tmp_path):
    lora = {"a": np.ones((4, 2)), "b": np.ones((2, 4))}
    tree = {"q": {"kernel_lora_a": lora["a"], "kernel_lora_b": lora["b"]}}
    parent = para.from_tree(tree, alpha=2)
    assert parent.tree is not None

    with pytest.raises(ValueError, match=r"'q' is a JAX path.*names\.to_hf"):
        names.to_installed(parent, tmp_path)
