"""Configurations from GGUF files; tests/interop compares them with transformers."""

import json

import numpy as np
import pytest

from tests.train.models import tiny_gguf
from train.models import folder_config, gemma3, gguf_config, llama

# The shape of google/gemma-3-1b, whose config.json is known.
GEMMA = {
    "embedding_length": 1152,
    "feed_forward_length": 6912,
    "block_count": 26,
    "attention.head_count": 4,
    "attention.head_count_kv": 1,
    "attention.key_length": 256,
    "attention.sliding_window": 512,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 1e6,
}
LLAMA = {
    "embedding_length": 24,
    "feed_forward_length": 20,
    "block_count": 3,
    "attention.head_count": 6,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


@pytest.fixture
def folder(tmp_path):
    def write(architecture, values, **tensors):
        found = {"token_embd": np.zeros((11, 4)), **tensors}
        tiny_gguf.write(
            tmp_path / "x.gguf",
            architecture,
            tensors={f"{name}.weight": x for name, x in found.items()},
            **{f"{architecture}.{key}": x for key, x in values.items()},
        )
        return tmp_path

    return write


def test_gemma_has_what_llama_cpp_has_in_its_code(folder):
    got = gemma3.read_config(folder("gemma3", GEMMA))

    assert got == gemma3.Config(
        vocab_size=11,
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        global_layers=(5, 11, 17, 23),
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        query_pre_attn_scalar=256,
        rms_norm_eps=float(np.float32(1e-6)),
    )


def test_gemma_27b_divides_by_another_width(folder):
    values = {
        "embedding_length": 5376,
        "block_count": 62,
        "attention.head_count": 32,
        "attention.key_length": 128,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }

    got = gemma3.read_config(folder("gemma3", GEMMA | values))

    assert (got.head_dim, got.query_pre_attn_scalar, got.rope_factor) == (128, 168, 8)


def test_newer_files_state_more_of_gemma(folder):
    values = {
        "attention.sliding_window_pattern": 3,
        "rope.freq_base_swa": 3e4,
        "final_logit_softcapping": 30.0,
    }

    got = gemma3.read_config(folder("gemma3", GEMMA | values))

    assert got.global_layers == (2, 5, 8, 11, 14, 17, 20, 23)
    assert got.rope_local_base_freq == 3e4
    assert got.final_logit_softcapping == 30


def test_llama_has_defaults(folder):
    got = llama.read_config(folder("llama", LLAMA, output=np.zeros((11, 4))))

    assert got == llama.Config(
        vocab_size=11,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=4,
        rms_norm_eps=float(np.float32(1e-5)),
        tie_word_embeddings=False,
    )


@pytest.mark.parametrize(
    ("values", "tensors"),
    [
        ({"rope.scaling.type": "yarn"}, {}),
        ({}, {"rope_freqs": np.ones(2)}),
    ],
)
def test_a_scaling_without_its_values_asks_for_the_configuration(
    folder, values, tensors
):
    place = folder("llama", LLAMA | values, **tensors)

    with pytest.raises(
        ValueError, match=r"x.gguf': the rotations .* config.json beside"
    ):
        llama.read_config(place)

    (place / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert folder_config.read(place) == {"model_type": "llama"}


def test_the_token_at_the_end_of_a_text_is_stated(tmp_path, folder):
    values = {f"llama.{key}": x for key, x in LLAMA.items()}
    tokens = {"token_embd.weight": np.zeros((11, 4))}
    more = {"tokenizer.ggml.eos_token_id": 7}
    tiny_gguf.write(tmp_path / "x.gguf", tensors=tokens, **values, **more)

    assert gguf_config.read(tmp_path / "x.gguf")["eos_token_id"] == 7
    (tmp_path / "x.gguf").unlink()
    file = folder("llama", LLAMA) / "x.gguf"
    assert gguf_config.read(file)["eos_token_id"] is None


def test_missing_values_are_listed(folder):
    values = {k: x for k, x in LLAMA.items() if "length" not in k}

    message = r"lacks \['embedding_length', 'feed_forward_length'\]"
    with pytest.raises(ValueError, match=message):
        llama.read_config(folder("llama", values))


def test_a_model_of_the_other_architecture_is_refused(folder):
    with pytest.raises(
        ValueError, match="model_type is 'llama', expected 'gemma3_text'"
    ):
        gemma3.read_config(folder("llama", LLAMA))
