"""Which of a model's files its configuration comes from."""

import json

import numpy as np
import pytest

from tests.train.models import tiny_gguf
from train.models import folder_config


def test_the_file_of_transformers_comes_before_that_of_llama_cpp(tmp_path):
    values = {"embedding_length": 4, "feed_forward_length": 6, "block_count": 1}
    values |= {"attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5}
    metadata = {f"llama.{name}": x for name, x in values.items()}
    words = {"token_embd.weight": np.zeros((4, 4))}
    tiny_gguf.write(tmp_path / "x.gguf", tensors=words, **metadata)

    assert folder_config.read(tmp_path)["hidden_size"] == 4
    assert folder_config.model_type(tmp_path) == "llama"

    beside = {"model_type": "gemma3_text", "hidden_size": 5}
    (tmp_path / "config.json").write_text(json.dumps(beside))

    assert folder_config.read(tmp_path) == beside
    assert folder_config.model_type(tmp_path) == "gemma3_text"


def test_a_model_need_not_say_its_type(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    assert folder_config.model_type(tmp_path) == ""


def test_an_empty_folder_lacks_its_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json' is missing"):
        folder_config.read(tmp_path)
