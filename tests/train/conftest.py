"""The pretrained encoder is loaded once."""

import pathlib
from collections.abc import Mapping
from typing import Any

import pytest


@pytest.fixture(scope="session")
def folder() -> pathlib.Path:
    from train.models import pretrained

    return pretrained.find_folder()


@pytest.fixture
def tiny() -> Any:
    """A BERT of unequal small sizes."""
    from tests.train import tiny

    return tiny.config()


@pytest.fixture
def tokens() -> Any:
    """Two sentences, of 3 and 5 tokens."""
    import numpy as np

    from train.models import bert

    ids = np.array([[3, 4, 5, 0, 0], [6, 7, 8, 9, 10]], np.int32)
    return bert.Tokens(ids, ids > 0)


@pytest.fixture
def params(tiny) -> Any:
    """Parameters of `BertClassifier(tiny, 3)`."""
    import numpy as np

    from tests.train.tiny import params
    from train.models import bert

    return params(bert.BertClassifier(tiny, 3), np.random.default_rng(0))


@pytest.fixture
def lora(tiny, key) -> Mapping[str, Any]:
    """Ragged adapters of `BertClassifier(tiny)`: rank 2 and 1, all others absent."""
    import jax

    def pair(key: jax.Array, m: int, r: int, n: int) -> dict[str, jax.Array]:
        a, b = jax.random.split(key)
        return {"a": jax.random.normal(a, (m, r)), "b": jax.random.normal(b, (r, n))}

    first, second = jax.random.split(key)
    blocks = {
        "0": {"attention": {"self": {"query": pair(first, 6, 2, 6)}}},
        "1": {"output": {"dense": pair(second, 10, 1, 6)}},
    }
    return {"bert": {"encoder": {"layer": blocks}}}


@pytest.fixture(scope="session")
def backbone(folder, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """A folder with a tiny BERT of random weights as transformers saves it; its hash.

    Only the tokenizer is the real one.
    """
    import hashlib
    import json

    import numpy as np
    import safetensors.numpy

    place = tmp_path_factory.mktemp("backbone")
    (place / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 56,
        "max_position_embeddings": 16,
    }
    (place / "config.json").write_text(json.dumps(config))
    generator = np.random.default_rng(0)
    tensors = {
        # A kernel keeps the size of its inputs, so that words reach the classifier.
        name: (generator.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in _tensor_shapes(place).items()
    }
    for name in tensors:
        if name.endswith("LayerNorm.weight"):
            tensors[name] = np.ones_like(tensors[name])
    safetensors.numpy.save_file(tensors, place / "model.safetensors")
    data = (place / "model.safetensors").read_bytes()
    return place, hashlib.sha256(data).hexdigest()


def _tensor_shapes(place: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors under the names of transformers."""
    from train.models import bert, pretrained

    return {
        x.names[0]: x.shape[::-1] if path.endswith("kernel") else x.shape
        for path, x in pretrained.leaves(bert.read_config(place)).items()
    }


@pytest.fixture(scope="module")
def settings(backbone) -> Any:
    """A run of seconds: four members with the tiny BERT, found by its module."""
    from train.methods import lora
    from train.models import pretrained
    from train.runs.settings import Run

    place, sha256 = backbone
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(pretrained.FOLDER_VARIABLE, str(place))
        yield Run(
            task="amazon",
            method=lora.Lora(rank=3),
            seeds=(0, 7),
            learning_rates=(1e-3, 3e-2),
            steps=70,
            batch=8,
            max_length=16,
            backbone=sha256,
        )
