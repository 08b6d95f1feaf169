"""Images as batches of pixels, made while the model computes.

A step's images depend on the seed and the step alone, so a run resumed at step k asks
for the batches from k on, and nothing needs to be saved. Pillow releases Python's lock
while it decodes and resizes, so threads are enough. Batches are bytes, converted by
`normalise` on the device, since bytes travel there four times as fast.

Axis letters: `B` images a batch, `S` steps, `H` and `W` pixels. Host code, but for
`normalise`.
"""

import collections
import concurrent.futures
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from train.data import arrays, tokens
from train.data.images import Images

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 224
"""The side of the model's images, in pixels."""

AREA = (0.08, 1.0)
"""The smallest and the largest share of an image in a random crop."""

RATIO = (3 / 4, 4 / 3)
"""The smallest and the largest width of a random crop, in heights."""

_TRIES = 10  # Of a random crop, before the largest square is taken.

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Batch(NamedTuple):
    """Pixels, and labels, which are `tokens.NO_LABEL` for filling rows."""

    images: UInt8[np.ndarray, "B H W 3"]
    labels: Int[np.ndarray, "B"]


def training(
    picture: "Image", generator: np.random.Generator, size: int = SIZE
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Cut out a random part of a picture, mirrored in half of the cases.

    The part's area is uniform in `AREA`, its ratio log-uniform in `RATIO`, after
    C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
    """
    from PIL.Image import Transpose

    box = _random_box(*picture.size, generator)
    part = _resized(picture, box, size)
    if generator.random() < 0.5:
        part = part.transpose(Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part)


def evaluation(
    picture: "Image", size: int = SIZE
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Cut out the largest square in the middle of a picture."""
    return np.asarray(_resized(picture, _square(*picture.size), size))


def normalise(
    pixels: UInt8[jax.Array | np.ndarray, "*B H W 3"],
) -> Float[jax.Array | np.ndarray, "*B H W 3"]:
    """Scale pixels to -1 to 1: SigLIP2's mean and deviation are 1/2."""
    return pixels.astype(np.float32) / 127.5 - 1


def training_batches(
    images: Images,
    *,
    seed: int,
    steps: int,
    batch: int,
    start: int = 0,
    size: int = SIZE,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Return the batches of the steps from `start` to `steps`.

    Args:
      images: The training images.
      seed: The seed of the order of the images and of their random changes.
      steps: The number of steps of the whole run.
      batch: Images a step.
      start: The first step to yield a batch for.
      size: The side of the images, in pixels.
      threads: The number of threads; by default the number of cores.
    """
    order = arrays.order(seed, len(images.labels), steps, batch)

    def make(step: int) -> Batch:
        pictures = _pictures(images, order[step])
        pixels = [
            # Seeded by step and place: any step can be made without those before it.
            training(picture, np.random.default_rng([seed, step, place]), size)
            for place, picture in enumerate(pictures)
        ]
        return Batch(np.stack(pixels), images.labels[order[step]])

    return prefetched(make, range(start, steps), threads=threads)


def evaluation_batches(
    images: Images, *, batch: int, size: int = SIZE, threads: int | None = None
) -> Iterator[Batch]:
    """Return all images in order; the last batch is padded with zeros.

    Args:
      images: The images to evaluate on.
      batch: Images in each.
      size: The side of the images, in pixels.
      threads: The number of threads; by default the number of cores.
    """
    count = len(images.labels)

    def make(start: int) -> Batch:
        rows = np.arange(start, min(start + batch, count))
        pixels = np.zeros((batch, size, size, 3), np.uint8)
        labels = np.full(batch, tokens.NO_LABEL, np.int32)
        labels[: len(rows)] = images.labels[rows]
        for place, picture in enumerate(_pictures(images, rows)):
            pixels[place] = evaluation(picture, size)
        return Batch(pixels, labels)

    return prefetched(make, range(0, count, batch), threads=threads)


def prefetched(
    make: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    threads: int | None = None,
    ahead: int | None = None,
) -> Iterator[_Result]:
    """Yield `make(item)` of each item in order, made ahead by threads.

    An exception in `make` is raised where its result would be. The threads end with the
    iterator: when it is exhausted, raises, is closed, or is forgotten.

    Args:
      make: Called in a thread, several at a time.
      items: Taken as results are asked for.
      threads: The number of threads; by default the number of cores.
      ahead: The number of results in progress; two a thread by default.
    """
    threads = threads or os.cpu_count() or 1
    # Twice the threads, so that none waits for the consumer.
    ahead = ahead or 2 * threads
    waiting: collections.deque[concurrent.futures.Future[_Result]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads, "prefetch") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) == ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Without waiting: the consumer may have stopped early.
            pool.shutdown(wait=False, cancel_futures=True)


def _pictures(images: Images, rows: Int[np.ndarray, "B"]) -> "Iterator[Image]":
    for row in rows.tolist():
        try:
            yield images.pictures[row]
        except Exception as error:
            # The library's error does not say which image it was.
            error.add_note(f"It is image {row} of {len(images.labels)}.")
            raise


def _resized(picture: "Image", box: tuple[int, int, int, int], size: int) -> "Image":
    """Resize a picture's `box`, in colours, by SigLIP2's interpolation."""
    from PIL.Image import Resampling

    # Crop first: pixels outside are then neither converted nor interpolated with.
    return picture.crop(box).convert("RGB").resize((size, size), Resampling.BILINEAR)


def _square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _random_box(
    width: int, height: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    narrow, wide = map(math.log, RATIO)
    for _ in range(_TRIES):
        area = generator.uniform(*AREA) * width * height
        # Log-uniform: 3:4 is as likely as 4:3.
        ratio = math.exp(generator.uniform(narrow, wide))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(width - w + 1))
            top = int(generator.integers(height - h + 1))
            return left, top, left + w, top + h
    return _square(width, height)
