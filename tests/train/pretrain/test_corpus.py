import re

import numpy as np
import pytest
import tokenizers

from train.pretrain import corpus, text


@pytest.fixture(scope="module")
def made():
    return corpus.make(documents=400, vocabulary=300, width=32)


@pytest.fixture(scope="module")
def tokenizer(made):
    return tokenizers.Tokenizer.from_str(made.tokenizer)


def test_the_tokenizer_decodes_what_it_encoded(tokenizer):
    for said in ("Anna has 12 apples.", "3 * 4 = 12. Fiancé — 漢字!\n", ""):
        encoded = tokenizer.encode(said).ids
        assert encoded[0] == corpus.BOS
        assert tokenizer.decode(encoded) == said


def test_every_digit_is_a_token(tokenizer):
    tokens = tokenizer.encode("1234 + 56 = 1290.").tokens
    digits = [x for x in tokens if any(c.isdigit() for c in x)]
    assert digits == list("1234561290")


def test_the_special_tokens_have_gemmas_numbers(tokenizer):
    assert [tokenizer.id_to_token(i) for i in range(3)] == ["<pad>", "<eos>", "<bos>"]
    assert tokenizer.get_vocab_size() <= 300


def test_the_rows_hold_the_documents_one_after_the_other(made, tokenizer):
    stream = np.concatenate([made.validation, made.train]).reshape(-1)

    parts = "".join(
        tokenizer.decode(list(x), skip_special_tokens=False) for x in [stream]
    )

    told = [x.removeprefix("<bos>") for x in parts.split("<eos>")]
    assert told[:-1] == list(text.documents(400))[: len(told) - 1]
    assert len(told) > 380  # The last row that is not full is left out.
    assert len(made.validation) == len(made.train) // 99


def test_sums_are_held_out_and_their_results_marked(made, tokenizer):
    for row, result in zip(made.sums, made.results, strict=True):
        whole = tokenizer.decode(list(row))
        told = re.fullmatch(r"(\d+ [-+*/] \d+) = (\d+\.)", whole)
        assert tokenizer.decode(list(row[result])) == told[2]
        assert text.sentiment.bucket(told[1]) < 5


def test_load_returns_what_was_saved(made, tmp_path):
    corpus.save(made, tmp_path / "new" / "corpus.npz")

    again = corpus.load(tmp_path / "new" / "corpus.npz")

    for one, two in zip(made, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert again.tokenizer == made.tokenizer


def test_the_same_call_gives_the_same_corpus(made):
    again = corpus.make(documents=400, vocabulary=300, width=32)
    for one, two in zip(made, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_file_that_is_not_there_is_said_how_to_make(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"-m train\.pretrain\.corpus --out"):
        corpus.load(tmp_path / "none.npz")


def test_the_command_says_what_it_made(tmp_path, capsys):
    corpus.main(["--out", str(tmp_path / "c.npz"), "--documents", "60"])
    assert "sums held out" in capsys.readouterr().out
    assert corpus.load(tmp_path / "c.npz").train.shape[1] == 256
