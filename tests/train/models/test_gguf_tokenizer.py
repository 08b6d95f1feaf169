"""Tokenizers from GGUF files; tests/interop compares them with transformers."""

import pytest
import tokenizers

from tests.train.models import tiny_gguf
from train.models import gguf_tokenizer

BYTES = [f"<0x{x:02X}>" for x in range(256)]
PIECES = ["▁", "a", "b", "c", "ab", "bc", "▁ab", "abc"]


def ggml(model, tokens, **values):
    kinds = [3 if x.startswith("<") and len(x) < 6 else 1 for x in tokens]
    found = {"model": model, "tokens": tokens, "token_type": kinds, **values}
    return {f"tokenizer.ggml.{key}": x for key, x in found.items()}


def sentencepiece(**values):
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *PIECES]
    # `bc` is better than `ab`, though it comes later.
    scores = [0.0] * 259 + [-float(x) for x in (0, 0, 0, 0, 9, 5, 6, 7)]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return ggml("llama", tokens, scores=scores, **ids, **values)


def byte_level(**values):
    tokens = ["<end>", "Ġ", "a", "1", "2", "12", "Ġ1", "aa"]
    merges = ["1 2", "Ġ 1", "a a"]
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return ggml("gpt2", tokens, merges=merges, **{"pre": "smollm"} | ids | values)


@pytest.fixture
def load(tmp_path):
    def write_and_load(metadata, architecture="llama"):
        tiny_gguf.write(tmp_path / "x.gguf", architecture, **metadata)
        return gguf_tokenizer.load(tmp_path)

    return write_and_load


def test_the_best_token_is_merged_first(load):
    got = load(sentencepiece()).encode("abc é")

    # Of `ab` and `bc`, the latter; or else it would be `▁ab` and `c`.
    assert got.tokens == ["<s>", "▁", "abc", "▁", "<0xC3>", "<0xA9>"]


def test_gemma_merges_in_the_order_of_its_tokens(load):
    got = load(sentencepiece(), "gemma3")

    assert got.encode(" abc").tokens == ["<s>", "▁ab", "c"]
    assert got.decode(got.encode(" ab c").ids) == " ab c"


def test_a_text_begins_with_a_space_unless_it_is_said_otherwise(load):
    spaced = load(sentencepiece())
    plain = load(sentencepiece(add_space_prefix=False))

    assert spaced.encode("a").tokens == ["<s>", "▁", "a"]
    assert plain.encode("a").tokens == ["<s>", "a"]
    assert spaced.decode(spaced.encode("ab a").ids) == "ab a"


def test_digits_stand_alone_in_smollm_and_not_in_gpt_2(load):
    assert load(byte_level()).encode("a 12").tokens == ["a", "Ġ", "1", "2"]
    assert load(byte_level(pre="gpt-2")).encode("a 12").tokens == ["a", "Ġ", "12"]


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        ({}, ["aa"]),
        ({"add_bos_token": True}, ["<end>", "aa"]),
        ({"add_eos_token": True}, ["aa", "<end>"]),
    ],
)
def test_a_text_has_the_ends_that_are_asked_for(load, flags, want):
    got = load(byte_level(**flags))

    assert got.encode("aa").tokens == want
    assert got.encode("aa", "aa").tokens == 2 * want
    assert got.encode("aa", add_special_tokens=False).tokens == ["aa"]


def test_control_tokens_are_found_in_text_and_left_out_of_it(load):
    got = load(byte_level())

    found = got.encode("a<end>a")

    assert found.tokens == ["a", "<end>", "a"]
    assert got.decode(found.ids) == "aa"


def test_tokenizer_json_is_taken_where_there_is_one(tmp_path):
    model = tokenizers.models.WordLevel({"a": 0, "?": 1}, "?")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "x.gguf").write_bytes(b"anything")

    assert gguf_tokenizer.load(tmp_path).encode("a").ids == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre": "llama-bpe"}, "'gpt2' and splits by 'llama-bpe', expected 'llama'"),
        ({"model": "bert"}, "of the model 'bert'"),
        ({"model": "llama"}, r"lacks the tokenizer's \['scores'\]"),
    ],
)
def test_a_tokenizer_of_another_form_is_refused(load, change, message):
    changed = {f"tokenizer.ggml.{key}": x for key, x in change.items()}

    with pytest.raises(ValueError, match=message):
        load(byte_level() | changed)


def test_an_empty_folder_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected tokenizer.json, or a file"):
        gguf_tokenizer.load(tmp_path)
