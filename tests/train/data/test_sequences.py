"""Prompts and responses as rows of tokens, and the labels of their positions."""

import jax
import numpy as np
import pytest

from train.data import arrays, sequences
from train.data.sequences import Pair

PAIRS = [Pair([2, 7, 9], [5, 1]), Pair([2], [4, 4, 6, 1]), Pair([2, 8], [1])]
IDS = [[2, 7, 9, 5, 1, 0, 0], [2, 4, 4, 6, 1, 0, 0], [2, 8, 1, 0, 0, 0, 0]]
LABELS = [
    [-1, -1, 5, 1, -1, -1, -1],
    [4, 4, 6, 1, -1, -1, -1],
    [-1, 1, -1, -1, -1, -1, -1],
]


def test_the_label_of_a_position_is_the_next_token_of_the_response():
    packed = sequences.pack(PAIRS, width=7)

    got = jax.jit(lambda x, rows: x.batch(rows))(packed, np.array([2, 0, 1]))

    assert got.inputs.tolist() == [IDS[2], IDS[0], IDS[1]]
    assert got.labels.tolist() == [LABELS[2], LABELS[0], LABELS[1]]
    assert packed.lengths[:3].tolist() == [5, 5, 3]
    assert packed.prompts[:3].tolist() == [3, 1, 2]


def test_a_sequence_may_fill_its_row():
    batch = sequences.pack(PAIRS[:2], width=5).batch(np.array([0, 1]))

    assert batch.labels.tolist() == [x[:5] for x in LABELS[:2]]


def test_rows_that_fill_up_have_no_labels():
    packed = sequences.pack(PAIRS, width=7)

    assert len(packed.ids) == arrays.ROWS
    batch = packed.batch(np.array([3, arrays.ROWS - 1]))
    assert (batch.labels == -1).all()
    assert (batch.inputs == 0).all()


def test_batches_have_one_size_and_keep_the_order():
    first, second = sequences.batches(PAIRS, width=7, size=2)

    assert [*first.inputs.tolist(), *second.inputs.tolist()] == [*IDS, [0] * 7]
    assert [*first.labels.tolist(), *second.labels.tolist()] == [*LABELS, [-1] * 7]
    assert isinstance(first.labels, np.ndarray)


def test_a_text_begins_once_and_ends_where_its_response_does():
    from tests.train import tiny_sums

    tokenizer = tiny_sums.tokenizer()
    question, solution = tiny_sums.TEXTS

    (pair,) = sequences.encode(tokenizer, [(question, f" {solution}")], end=1)

    whole = tokenizer.encode(f"{question} {solution}").ids
    assert [*pair.prompt, *pair.response] == [*whole, 1]
    assert pair.prompt[0] == 2
    assert tokenizer.decode(pair.response) == f" {solution}"
    # Each digit is a token.
    assert [tokenizer.decode([x]) for x in pair.response[-3:-1]] == ["1", "7"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "No sequences"),
        ([*PAIRS, Pair([], [1])], "The prompt of sequence 3 is empty"),
        ([Pair([2], [])], "The response of sequence 0 is empty"),
        (
            [PAIRS[2], Pair([2, 7, 9], [5, 5, 1])],
            "Sequence 1 has 6 tokens, 3 of them in its response, expected <= 5",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        sequences.pack(pairs, width=5)
