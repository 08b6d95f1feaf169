"""Sentences as batches of a few fixed shapes.

jit compiles one program a shape, and padding costs as much as text. So sentences are
sorted by length into widths, and every batch of a width holds about the same number
of tokens. Axis letters: `B` sentences, `T` tokens. Runs on the host.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers

from train.data.batch import NO_LABEL, Batch
from train.models.bert import Tokens

MAX_LENGTH = 64

WIDTHS = (8, 16, 24, 32, 40, 48, MAX_LENGTH)
"""Widths of batches. Fewer widths compile fewer programs, and pad more."""

# Measured on two CPU cores: 512 and 2048 tokens a batch are slower by 10 to 70 %.
_TOKENS_PER_BATCH = 1024


def load_tokenizer(
    folder: pathlib.Path, max_length: int = MAX_LENGTH
) -> tokenizers.Tokenizer:
    """Load the tokenizer of a model folder; it truncates and never pads."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()  # The file itself asks for 128 tokens, always.
    return tokenizer


def encode(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str | tuple[str, str]]
) -> list[list[int]]:
    """Tokenize each text, or pair of texts, with the special tokens.

    Those are [CLS] and [SEP] of BERT, <s> and </s> of RoBERTa, as the tokenizer's file
    says. Of a pair that is too long, the longer text loses tokens.
    """
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def batches(
    ids: Sequence[Sequence[int]],
    labels: Sequence[int],
    *,
    widths: Sequence[int] = WIDTHS,
) -> list[Batch]:
    """Return all sentences in batches, the short ones first.

    Args:
      ids: The token ids of each sentence.
      labels: The class of each sentence.
      widths: The widths to pad sentences to, rising.

    Raises:
      ValueError: if a sentence is too long, or the arguments differ in length.
    """
    if longest := max((len(x) for x in ids if len(x) > widths[-1]), default=0):
        raise ValueError(f"A sentence has {longest} tokens, expected <= {widths[-1]}.")
    # Sorted by length: batches then need little padding.
    pairs = sorted(zip(ids, labels, strict=True), key=lambda pair: len(pair[0]))
    result: list[Batch] = []
    for shorter, width in zip((0, *widths), widths, strict=False):
        rows = [pair for pair in pairs if shorter < len(pair[0]) <= width]
        # Batches of equal numbers of tokens, not of sentences.
        size = _TOKENS_PER_BATCH // width
        starts = range(0, len(rows), size)
        result += [_batch(rows[x : x + size], size, width) for x in starts]
    return result


def _batch(rows: Sequence[tuple[Sequence[int], int]], size: int, width: int) -> Batch:
    ids = np.zeros((size, width), np.int32)
    labels = np.full(size, NO_LABEL, np.int32)
    lengths = np.ones(size, np.int32)  # A filling row attends to its first token.
    for row, (tokens, name) in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        labels[row], lengths[row] = name, len(tokens)
    return Batch(Tokens(ids, np.arange(width) < lengths[:, None]), labels)
