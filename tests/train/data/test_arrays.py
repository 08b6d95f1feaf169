import collections

import numpy as np
import pytest

from train.data import arrays


def test_every_sentence_is_read_once_an_epoch():
    rows = arrays.order(3, examples=11, steps=10, batch=4)

    assert rows.shape == (10, 4)
    flat = rows.ravel()
    for epoch in (flat[:11], flat[11:22], flat[22:33]):
        assert sorted(epoch) == list(range(11))
    assert not np.array_equal(flat[:11], flat[11:22])
    assert max(collections.Counter(flat[33:]).values()) == 1


def test_the_order_depends_on_the_seed_and_not_on_the_number_of_steps():
    ten = arrays.order(3, examples=11, steps=10, batch=4)

    np.testing.assert_array_equal(arrays.order(3, 11, 3, 4), ten[:3])
    assert not np.array_equal(arrays.order(4, 11, 10, 4), ten)


def test_rows_are_filled_up_with_zeros():
    got = arrays.pack([[5, 6, 7], [8]], [2, 1], width=4)

    assert got.ids.shape == (arrays.ROWS, 4)
    np.testing.assert_array_equal(got.ids[:3], [[5, 6, 7, 0], [8, 0, 0, 0], [0] * 4])
    np.testing.assert_array_equal(got.lengths[:3], [3, 1, 1])
    np.testing.assert_array_equal(got.labels[:2], [2, 1])


def test_the_number_of_rows_is_a_power_of_two(monkeypatch):
    monkeypatch.setattr(arrays, "ROWS", 4)

    sizes = [len(arrays.pack([[1]] * n, [0] * n, width=1).ids) for n in (1, 4, 5, 8, 9)]

    assert sizes == [4, 4, 8, 8, 16]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_refused(label):
    message = f"The label {label} is out of range, expected 0 to 2: negative, neutral"
    with pytest.raises(ValueError, match=message):
        arrays.pack([[1], [2]], [0, label], width=3)


def test_labels_are_those_of_the_task_s_own_classes():
    packed = arrays.pack([[1], [2]], [4, 0], width=3, classes="abcde")
    np.testing.assert_array_equal(packed.labels[:2], [4, 0])
    with pytest.raises(
        ValueError, match="The label 2 is out of range, expected 0 to 1"
    ):
        arrays.pack([[1], [2]], [2, 0], width=3, classes=("no", "yes"))


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="No sentences to train on: the split is empt"):
        arrays.pack([], [], width=3)


def test_a_sentence_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="A sentence has 4 tokens, expected <= 3"):
        arrays.pack([[1, 2, 3, 4]], [0], width=3)
