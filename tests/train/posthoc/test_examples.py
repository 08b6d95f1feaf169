import numpy as np
import pytest

from train.data.batch import Batch
from train.models.bert import Tokens
from train.posthoc import Examples
from train.posthoc.examples import batches, examples_of


@pytest.fixture
def eleven():
    """Eleven sentences, the last without a label; each token is its row's number."""
    ids = np.repeat(np.arange(11, dtype=np.int32)[:, None], 4, 1)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, -1], np.int32)
    return Examples(Tokens(ids, np.ones_like(ids, bool)), labels)


def test_the_first_batches_of_a_shuffle_are_taken_once(eleven):
    got = batches(eleven, size=3, count=2, seed=1)

    rows = got.inputs.ids[..., 0]
    assert got.inputs.mask.shape == (2, 3, 4)
    assert len(set(rows.flat)) == 6
    np.testing.assert_array_equal(got.labels, rows % 3)


def test_a_seed_is_one_shuffle_and_more_batches_begin_with_the_fewer(eleven):
    few = batches(eleven, size=3, count=1, seed=5)
    more = batches(eleven, size=3, count=3, seed=5)
    other = batches(eleven, size=3, count=3, seed=6)

    np.testing.assert_array_equal(few.inputs.ids[0], more.inputs.ids[0])
    assert (other.inputs.ids != more.inputs.ids).any()


def test_a_small_set_is_taken_whole_and_filled_up_with_what_does_not_count(eleven):
    got = batches(eleven, size=4, count=50)

    assert sorted(got.inputs.ids[got.labels >= 0][:, 0]) == list(range(10))
    filled = got.labels == -1
    np.testing.assert_array_equal(filled.sum(1), [0, 0, 2])
    assert not got.inputs.mask[filled].any()


def test_no_sentences_are_refused(eleven):
    empty = Examples(eleven.inputs, np.full(11, -1, np.int32))

    with pytest.raises(ValueError, match="No examples"):
        batches(empty, size=2)


def test_sequences_are_filled_up_with_tokens_that_have_no_label():
    short = Batch(np.ones((1, 2), np.int32), np.array([[-1, 3]], np.int32))
    long = Batch(np.full((2, 3), 2, np.int32), np.array([[-1] * 3, [5, 6, -1]]))

    found = examples_of([short, long])

    assert found.inputs.tolist() == [[1, 1, 0], [2, 2, 2], [2, 2, 2]]
    assert found.labels.tolist() == [[-1, 3, -1], [-1, -1, -1], [5, 6, -1]]
    # One row has no label at all.
    got = batches(found, size=3)
    assert sorted(got.labels[0].tolist()) == [[-1] * 3, [-1, 3, -1], [5, 6, -1]]
    assert got.inputs[0, 2].tolist() == [0, 0, 0]
