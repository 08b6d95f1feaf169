"""The documents of `train.pretrain.text` as tokens, in one portable file.

    python -m train.pretrain.corpus --out out/corpus.npz

The tokenizer is a byte-level BPE, learned here, to which every digit is a token of its
own. Axis letters: `N` rows, `T` tokens. Runs on the host.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, UInt16
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from train.pretrain import text

PAD, EOS, BOS = range(3)
"""The special tokens for padding, end and begin of a text, with Gemma's numbers."""

VOCABULARY = 1024
"""The maximal number of tokens."""

_SPECIAL = ("<pad>", "<eos>", "<bos>")


class Corpus(NamedTuple):
    """Rows of tokens, with each document between `BOS` and `EOS`, cut at the row's end.

    Attributes:
      train: The rows to train on.
      validation: One row of 100.
      sums: Sums that are in no document, one a row, filled up with `PAD`.
      results: The places of the digits of their results.
      tokenizer: The contents of tokenizer.json.
    """

    train: UInt16[np.ndarray, "N T"]
    validation: UInt16[np.ndarray, "V T"]
    sums: UInt16[np.ndarray, "K S"]
    results: Bool[np.ndarray, "K S"]
    tokenizer: str


def learn_tokenizer(documents: Sequence[str], vocabulary: int) -> tokenizers.Tokenizer:
    """Learn a tokenizer of at most `vocabulary` tokens from `documents`.

    It begins every text with `BOS`, and decodes its encodings to the same text.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # A token for each digit, so that sums can be learned by column.
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_SPECIAL[BOS]} $A", special_tokens=[(_SPECIAL[BOS], BOS)]
    )
    return tokenizer


def make(
    *, documents: int = 200_000, vocabulary: int = VOCABULARY, width: int = 256
) -> Corpus:
    """Make a corpus of a number of documents, in rows of `width` tokens."""
    texts = list(text.documents(documents))
    # A sample is enough: the vocabulary is small.
    tokenizer = learn_tokenizer(texts[:20_000], vocabulary)
    rows = _packed(tokenizer, texts, width)
    held_out = max(1, len(rows) // 100)
    sums, results = _sums(tokenizer, text.held_out_sums(min(2000, documents)))
    return Corpus(
        train=rows[held_out:],
        validation=rows[:held_out],
        sums=sums,
        results=results,
        tokenizer=tokenizer.to_str(),
    )


def save(corpus: Corpus, path: pathlib.Path) -> None:
    """Write `corpus` to a compressed .npz file. Inverse: `load`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **corpus._asdict())


def load(path: pathlib.Path) -> Corpus:
    """Load the corpus. Inverse: `save`.

    Raises:
      FileNotFoundError: if there is no such file; it says how to make one.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No corpus in '{path}'. To make it: python -m train.pretrain.corpus --out "
            f"{path}"
        )
    with np.load(path) as file:
        arrays = {name: file[name] for name in Corpus._fields}
    return Corpus(**arrays | {"tokenizer": str(arrays["tokenizer"])})


def _packed(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], width: int
) -> UInt16[np.ndarray, "N T"]:
    tokens = [
        np.array([*encoding.ids, EOS], np.uint16)
        for encoding in tokenizer.encode_batch_fast(list(texts))
    ]
    stream = np.concatenate(tokens)
    # The incomplete last row is dropped.
    return stream[: len(stream) // width * width].reshape(-1, width)


def _sums(
    tokenizer: tokenizers.Tokenizer, sums: Sequence[text.Sum]
) -> tuple[UInt16[np.ndarray, "K S"], Bool[np.ndarray, "K S"]]:
    encodings = tokenizer.encode_batch([str(x) for x in sums])
    width = max(len(encoding.ids) for encoding in encodings)
    rows = np.full((len(sums), width), PAD, np.uint16)
    results = np.zeros(rows.shape, bool)
    for row, result, encoding, x in zip(rows, results, encodings, sums, strict=True):
        row[: len(encoding.ids)] = encoding.ids
        # After "= ".
        begin = str(x).index("=") + 2
        # Of BOS the span is empty and at 0; the full stop behind the digits counts.
        result[: len(encoding.ids)] = [start >= begin for start, _ in encoding.offsets]
    return rows, results


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the corpus and summarise it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=pathlib.Path, default="out/corpus.npz")
    parser.add_argument("--documents", type=int, default=200_000)
    chosen = parser.parse_args(arguments)
    corpus = make(documents=chosen.documents)
    save(corpus, chosen.out)
    print(
        f"{corpus.train.size / 1e6:.1f} million tokens to train on, "
        f"{corpus.validation.size / 1e6:.2f} million to validate on, "
        f"{len(corpus.sums)} sums held out: {chosen.out.stat().st_size / 1e6:.1f} MB "
        f"in {chosen.out}."
    )


if __name__ == "__main__":
    main()
