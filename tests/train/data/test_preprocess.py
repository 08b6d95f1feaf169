import itertools
import threading

import jax
import numpy as np
import PIL.Image
import pytest

from train.data import arrays, images, preprocess


def sample(count=11, size=(23, 17)):
    """Random pictures, to tell one from another."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(256, size=(count, *size[::-1], 3), dtype=np.uint8)
    return images.Images(
        [PIL.Image.fromarray(x) for x in pixels],
        np.arange(count, dtype=np.int32) % 5,
        tuple("abcde"),
    )


def bilinear(inputs, outputs):
    """Return weights [outputs, inputs]: a triangle as wide as an output pixel."""
    scale = max(inputs / outputs, 1.0)
    centres = (np.arange(outputs) + 0.5) * inputs / outputs
    distance = np.abs(np.arange(inputs) + 0.5 - centres[:, None]) / scale
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(13, 19), (19, 13), (16, 16), (5, 4)])
def test_evaluation_takes_the_middle_square(shape):
    height, width = shape
    array = np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8)

    got = preprocess.evaluation(PIL.Image.fromarray(array), size=8)

    side = min(shape)
    top, left = (height - side) // 2, (width - side) // 2
    square = array[top : top + side, left : left + side].astype(np.float64)
    weights = bilinear(side, 8)
    want = np.einsum("yi,xj,ijc->yxc", weights, weights, square)
    assert got.dtype == np.uint8
    # Pillow rounds to bytes after each direction.
    np.testing.assert_allclose(got, want, atol=1.01)


def test_pixels_go_from_minus_one_to_one():
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 64, 1).repeat(3, axis=2)

    want = (pixels / 255.0 - 0.5) / 0.5
    np.testing.assert_allclose(preprocess.normalise(pixels), want, atol=1e-6)
    traced = jax.jit(preprocess.normalise)(pixels)
    assert traced.dtype == np.float32
    np.testing.assert_allclose(traced, want, atol=1e-6)


@pytest.mark.slow
def test_a_square_becomes_what_transformers_makes_of_it_for_siglip2():
    transformers = pytest.importorskip("transformers")
    pixels = np.random.default_rng(0).integers(256, size=(37, 37, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(pixels)
    # The settings of google/siglip2-base-patch16-224, but for the size.
    processor = transformers.SiglipImageProcessorPil(
        size={"height": 24, "width": 24},
        resample=PIL.Image.Resampling.BILINEAR,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )

    got = preprocess.normalise(preprocess.evaluation(picture, 24))

    want = processor(picture, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(got, want[0].transpose(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_pictures_of_all_kinds_become_colours(mode):
    picture = sample().pictures[0].convert(mode)

    got = preprocess.evaluation(picture, size=17)

    want = np.asarray(picture.convert("RGB"))[:, 3:20]
    np.testing.assert_array_equal(got, want)
    other = preprocess.training(picture, np.random.default_rng(0), size=6)
    assert other.shape == (6, 6, 3)


def crops(width, height, count):
    """Return width, height and mirroring of random crops, read off their pixels.

    Red is the column of a pixel and green its row.
    """
    y, x = np.mgrid[:height, :width]
    array = np.stack([x, y, 0 * x], axis=2).astype(np.uint8)
    picture = PIL.Image.fromarray(array)
    size = 40
    for seed in range(count):
        got = preprocess.training(picture, np.random.default_rng(seed), size)
        red, green = got[..., 0].astype(float), got[..., 1].astype(float)
        inner = slice(8, -8)  # Interpolation stops at the crop's edge.
        across = np.polyfit(np.arange(size)[inner], red.mean(axis=0)[inner], 1)[0]
        down = np.polyfit(np.arange(size)[inner], green.mean(axis=1)[inner], 1)[0]
        yield abs(across) * size, down * size, across < 0


def test_random_crops_keep_their_bounds_and_use_them():
    width, height = 240, 200
    found = np.array(list(crops(width, height, 300)))
    w, h, mirrored = found.T

    area, ratio = w * h / (width * height), w / h
    assert 0.07 < area.min() < 0.15
    assert 0.85 < area.max() < 1.01
    assert 0.73 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.36
    assert 0.4 < mirrored.mean() < 0.6
    # Uniform areas, but for those that do not fit and are drawn again.
    assert 0.4 < np.median(area) < 0.56


@pytest.mark.parametrize("size", [(1, 60), (60, 1), (1, 1)])
def test_a_picture_that_no_crop_fits_is_taken_as_a_square(size):
    picture = PIL.Image.new("RGB", size, (1, 2, 3))

    got = preprocess.training(picture, np.random.default_rng(0), size=4)

    np.testing.assert_array_equal(got, np.broadcast_to([1, 2, 3], (4, 4, 3)))


def batches(sample, **more):
    settings = {"seed": 3, "steps": 6, "batch": 4, "size": 8, "threads": 2} | more
    return list(preprocess.training_batches(sample, **settings))


def assert_equal(got, want):
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x.images, y.images)
        np.testing.assert_array_equal(x.labels, y.labels)


def test_training_reads_the_order_of_the_seed():
    some = sample()
    got = batches(some)

    order = arrays.order(3, examples=11, steps=6, batch=4)
    assert [x.images.shape for x in got] == [(4, 8, 8, 3)] * 6
    for batch, rows in zip(got, order, strict=True):
        np.testing.assert_array_equal(batch.labels, some.labels[rows])
    rows = order[2]
    want = [
        preprocess.training(some.pictures[row], np.random.default_rng([3, 2, i]), 8)
        for i, row in enumerate(rows)
    ]
    np.testing.assert_array_equal(got[2].images, want)


def test_batches_do_not_depend_on_the_threads_and_start_where_asked():
    some = sample()
    want = batches(some, threads=1)

    assert_equal(batches(some, threads=3), want)
    assert_equal(batches(some, start=4), want[4:])
    assert batches(some, start=6) == []
    other = batches(some, seed=4)
    assert not all(
        np.array_equal(x.images, y.images) for x, y in zip(other, want, strict=True)
    )


def test_one_picture_looks_different_in_each_epoch():
    only = sample(count=1)
    first, second = batches(only, steps=2, batch=1)
    assert not np.array_equal(first.images, second.images)


def test_evaluation_reads_all_once_and_fills_up_the_last_batch():
    some = sample()

    got = list(preprocess.evaluation_batches(some, batch=4, size=8, threads=2))

    assert [x.images.shape for x in got] == [(4, 8, 8, 3)] * 3
    labels = np.concatenate([x.labels for x in got])
    np.testing.assert_array_equal(labels, [*some.labels, -1])
    pixels = np.concatenate([x.images for x in got])
    want = [preprocess.evaluation(x, 8) for x in some.pictures]
    np.testing.assert_array_equal(pixels[:11], want)


def threads():
    return [x for x in threading.enumerate() if x.name.startswith("prefetch")]


def test_results_come_in_order_though_later_ones_are_made_first():
    second = threading.Event()

    def make(item):
        if item == 0:
            assert second.wait(60)  # Only a second thread can set it.
        if item == 1:
            second.set()
        return item * item

    assert list(preprocess.prefetched(make, range(7), threads=2)) == [
        0,
        1,
        4,
        9,
        16,
        25,
        36,
    ]
    assert not threads()


def test_an_exception_comes_where_its_result_would_and_ends_the_threads():
    def make(item):
        if item == 2:
            raise KeyError("two")
        return item

    got = preprocess.prefetched(make, itertools.count(), threads=3)

    assert [next(got), next(got)] == [0, 1]
    with pytest.raises(KeyError, match="two"):
        next(got)
    assert not threads()


@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_threads_end_with_the_iterator(end):
    got = preprocess.prefetched(lambda x: x, itertools.count(), threads=3)
    assert next(got) == 0
    assert threads()

    if end == "closed":
        got.close()
    del got

    assert not threads()


def test_what_has_not_begun_when_the_iterator_is_closed_is_never_made():
    made = []

    def make(item):
        made.append(item)
        return sum(range(100_000))  # So that a thousand of them take a while.

    got = preprocess.prefetched(make, itertools.count(), threads=1, ahead=1000)
    next(got)
    got.close()

    assert len(made) < 1000


def test_no_more_is_made_beforehand_than_asked_for():
    taken = []

    def items():
        for x in range(10):
            taken.append(x)
            yield x

    got = preprocess.prefetched(lambda x: x, items(), threads=2, ahead=3)

    assert next(got) == 0
    assert taken == [0, 1, 2]
    assert next(got) == 1
    assert taken == [0, 1, 2, 3]
    assert list(got) == list(range(2, 10))


def test_a_damaged_picture_is_named():
    class Damaged(list):
        def __getitem__(self, row):
            if row == 7:
                raise OSError("image file is truncated")
            return super().__getitem__(row)

    some = sample()
    some = some._replace(pictures=Damaged(some.pictures))

    with pytest.raises(OSError, match="truncated") as caught:
        list(preprocess.evaluation_batches(some, batch=4, size=8))
    assert caught.value.__notes__ == ["It is image 7 of 11."]
