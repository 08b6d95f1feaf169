"""The end token of language models, from the files that name it."""

import json

import numpy as np
import pytest
import tokenizers

from tests.train.models import tiny_gguf
from train.models import causal, folder_config

WORDS = ["<pad>", "<eos>", "<|endoftext|>", "<|im_end|>"]


@pytest.fixture
def tokenizer():
    ids = {word: number for number, word in enumerate(WORDS)}
    return tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<pad>"))


@pytest.fixture
def write(tmp_path):
    def write(**files):
        for name, values in {"config": {"model_type": "llama"}, **files}.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(values))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("files", "want"),
    [
        # As in SmolLM2-Instruct, and as older versions of transformers wrote it.
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, "<|im_end|>"),
        ({"tokenizer_config": {"eos_token": {"content": "<eos>"}}}, "<eos>"),
        ({"generation_config": {"eos_token_id": 2}}, "<|endoftext|>"),
        # Gemma 3's files list the end of a turn after that of the text.
        ({"generation_config": {"eos_token_id": [1, 3]}}, "<eos>"),
        ({"config": {"eos_token_id": [3, 1]}}, "<|im_end|>"),
        ({"config": {"text_config": {"eos_token_id": 3}}}, "<|im_end|>"),
        # The tokenizer's own settings come first: they belong to these words.
        (
            {
                "tokenizer_config": {"eos_token": "<|im_end|>"},
                "generation_config": {"eos_token_id": 2},
                "config": {"eos_token_id": 1},
            },
            "<|im_end|>",
        ),
        (
            {"generation_config": {"eos_token_id": 2}, "config": {"eos_token_id": 1}},
            "<|endoftext|>",
        ),
        # A token that the tokenizer lacks cannot end its texts.
        (
            {
                "tokenizer_config": {"eos_token": "</s>"},
                "generation_config": {"eos_token_id": 99},
                "config": {"eos_token_id": 1},
            },
            "<eos>",
        ),
    ],
)
def test_the_end_of_a_text_is_what_the_files_say(write, tokenizer, files, want):
    assert causal.end_token(write(**files), tokenizer) == WORDS.index(want)


def test_a_file_of_llama_cpp_says_its_type_and_its_end(tmp_path, tokenizer):
    # The least that a file states, written by llama.cpp's package.
    values = {"embedding_length": 4, "feed_forward_length": 6, "block_count": 1}
    values |= {"attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5}
    metadata = {f"llama.{name}": x for name, x in values.items()}
    metadata["tokenizer.ggml.eos_token_id"] = 3
    words = {"token_embd.weight": np.zeros((4, 4))}
    tiny_gguf.write(tmp_path / "x.gguf", tensors=words, **metadata)

    assert folder_config.model_type(tmp_path) == "llama"
    assert causal.end_token(tmp_path, tokenizer) == WORDS.index("<|im_end|>")
    # What stands beside the file comes first.
    beside = {"model_type": "gemma3", "eos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(beside))
    assert folder_config.model_type(tmp_path) == "gemma3"
    assert causal.end_token(tmp_path, tokenizer) == WORDS.index("<eos>")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": []}},
        {"config": {"eos_token_id": None, "text_config": None}},
    ],
)
def test_files_without_an_end_are_refused(write, tokenizer, files):
    folder = write(**files)

    with pytest.raises(ValueError, match="names no token for the end of a text") as got:
        causal.end_token(folder, tokenizer)

    assert "`eos_token_id` in generation_config.json or config.json" in str(got.value)


def test_models_are_found_by_all_of_their_names():
    from train.models import gemma3, llama

    for name in ("gemma3", "gemma3_text"):
        family = causal.FAMILIES[name]
        assert family == (gemma3.Gemma3, gemma3.read_config, gemma3.load)
    assert causal.FAMILIES["llama"] == (llama.Llama, llama.read_config, llama.load)
