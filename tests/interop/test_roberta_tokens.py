"""Compare the tokens of sentences and pairs with transformers' tokenizer."""

import pytest
import tokenizers
import transformers

from train.data import tokens

TEXTS = (
    "The company said that its profit rose by a quarter.",
    "Profit rose.",
    "  Its shares fell, however; nobody knows why!",
    "What did the company say about its profit, its shares, and the quarter?",
    "",
    "Größe: 3,5 µm → fine",
)
PAIRS = [(x, y) for x in TEXTS for y in TEXTS]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Return a RoBERTa tokenizer with a vocabulary learned from these sentences."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(TEXTS * 3, vocab_size=300, special_tokens=special)
    folder = str(tmp_path_factory.mktemp("vocabulary"))
    bpe.save_model(folder)
    return transformers.RobertaTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    theirs.save_pretrained(path)
    return path


@pytest.mark.parametrize("length", [128, 17, 8])
def test_sentences_and_pairs_are_those_of_transformers(theirs, folder, length):
    tokenizer = tokens.load_tokenizer(folder, length)
    options = {"truncation": "longest_first", "max_length": length}

    for texts in (list(TEXTS), PAIRS):
        got = tokens.encode(tokenizer, texts)

        assert got == theirs(texts, **options)["input_ids"]
        assert max(map(len, got)) <= length


def test_a_pair_is_divided_by_two_separators(folder):
    tokenizer = tokens.load_tokenizer(folder, 128)

    (pair,) = tokens.encode(tokenizer, [("Profit rose.", "Its shares fell")])
    first, second = tokens.encode(tokenizer, ["Profit rose.", "Its shares fell"])

    start, end = 0, 2  # <s> and </s>.
    assert (first[0], first[-1]) == (start, end)
    assert pair == [*first, end, *second[1:]]
