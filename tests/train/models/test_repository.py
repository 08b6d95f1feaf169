"""What is downloaded of a model, by the hub's own rules for patterns of names."""

import pathlib

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from train.models import repository

NAMES = [
    *("README.md", "config.json", "tokenizer.json", "merges.txt"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    *("model-Q4_K_M.gguf", "model-Q8_0.gguf", "pytorch_model.bin", "tf_model.h5"),
]


@pytest.fixture
def downloaded(monkeypatch):
    """Return the names of the files that were asked for."""
    found = []

    def snapshot_download(repo, *, allow_patterns):
        found.extend(filter_repo_objects(NAMES, allow_patterns=allow_patterns))
        return f"cache/{repo}"

    monkeypatch.delenv(repository.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return found


def test_tensors_are_downloaded_in_one_format(downloaded):
    assert repository.find("a/b") == pathlib.Path("cache/a/b")
    assert downloaded == [
        x for x in NAMES if x.endswith(("json", "safetensors", "txt"))
    ]
