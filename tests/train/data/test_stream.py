import threading

import numpy as np
import PIL.Image
import pytest

from train.data import images, preprocess, stream


def sample(count=11):
    """Random pictures, to tell one from another."""
    pixels = np.random.default_rng(0).integers(256, size=(count, 9, 13, 3), dtype="u1")
    labels = np.arange(count, dtype=np.int32) % 5
    return images.Images([*map(PIL.Image.fromarray, pixels)], labels, tuple("abcde"))


def joined(found, seeds, *, start=0, stop=7, size=3):
    return list(
        stream.joined(
            stream.Pictures(images=found, size=6),
            seeds,
            steps=7,
            batch=4,
            start=start,
            stop=stop,
            size=size,
        )
    )


@pytest.mark.parametrize("start", [0, 2])
def test_chunks_hold_the_batches_of_each_seed_in_order(start):
    found = sample()
    want = {
        seed: list(
            preprocess.training_batches(
                found, seed=seed, steps=7, batch=4, start=start, size=6, threads=2
            )
        )
        for seed in (3, 8)
    }

    chunks = joined(found, (3, 8), start=start)

    assert [rows.shape for _, rows in chunks] == (
        [(2, 3, 4), (2, 3, 4), (2, 1, 4)] if start == 0 else [(2, 3, 4), (2, 2, 4)]
    )
    for place, seed in enumerate((3, 8)):
        got = [data.batch(x) for data, rows in chunks for x in rows[place]]
        assert len(got) == len(want[seed]) == 7 - start
        for batch, right in zip(got, want[seed], strict=True):
            assert batch.inputs.dtype == np.uint8
            np.testing.assert_array_equal(batch.inputs, right.images)
            np.testing.assert_array_equal(batch.labels, right.labels)


def test_a_chunk_ends_where_the_steps_do():
    ((data, rows),) = joined(sample(), (0,), stop=2, size=5)
    assert rows.shape == (1, 2, 4)
    assert data.images.shape == (8, 6, 6, 3)


def test_the_next_chunk_is_made_while_one_is_in_use():
    made = {x: threading.Event() for x in range(3)}

    class Numbers:
        def chunks(self, seed, *, steps, batch, start, stop, size):
            for first in range(start, stop, size):
                made[first].set()
                yield stream.Pixels(np.zeros((size, 1, 1, 3), "u1"), np.zeros(size))

    given = {"steps": 3, "batch": 1, "start": 0, "stop": 3, "size": 1}
    chunks = stream.joined(Numbers(), (0,), **given)

    next(chunks)
    assert made[1].wait(timeout=300)
    assert not made[2].is_set()
    chunks.close()


def test_a_picture_that_cannot_be_read_stops_the_run():
    found = sample()

    class Broken(list):
        def __getitem__(self, row):
            raise OSError("truncated")

    broken = found._replace(pictures=Broken(found.pictures))
    with pytest.raises((OSError, ValueError), match="truncated"):
        joined(broken, (0,))
