"""Images for the device in chunks of batches, made while it computes.

A large set does not fit there: Food-101 takes 11 GB at 224 pixels, and every epoch
crops it anew. A chunk of 100 batches of 32 takes 480 MB, and there are three at a time:
one in use, one that waits, one in the making.

Axis letters: `K` seeds, `S` steps of a chunk, `B` examples a batch, `N` images of a
chunk, `H` and `W` pixels. Host code, but for `Pixels.batch`.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8

from train.data import images, preprocess
from train.data.batch import Batch, Examples, Stream


class Pixels(NamedTuple):
    """Images as bytes, and their classes. A pytree, so that a program can index it."""

    images: UInt8[jax.Array | np.ndarray, "N H W 3"]
    labels: Int[jax.Array | np.ndarray, "N"]

    def batch(self, rows: Int[jax.Array | np.ndarray, "B"]) -> Batch:
        """Return some of the images, as bytes. Traceable under `jit`."""
        return Batch(self.images[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """A set of images as a stream: random crops, half of them mirrored.

    Attributes:
      images: The training images.
      size: The side of the model's images, in pixels.
    """

    images: images.Images
    size: int = preprocess.SIZE

    def chunks(
        self, seed: int, *, steps: int, batch: int, start: int, stop: int, size: int
    ) -> Iterator[Examples]:
        """Yield the batches of `preprocess.training_batches`; see `Stream`."""
        batches = preprocess.training_batches(
            self.images,
            seed=seed,
            steps=steps,
            batch=batch,
            start=start,
            size=self.size,
        )
        # Lazily: a chunk is made when it is asked for.
        wanted = itertools.islice(batches, stop - start)
        while some := list(itertools.islice(wanted, size)):
            yield Pixels(*map(np.concatenate, zip(*some, strict=True)))


def joined(
    stream: Stream,
    seeds: Sequence[int],
    *,
    steps: int,
    batch: int,
    start: int,
    stop: int,
    size: int,
) -> Iterator[tuple[Examples, Int[np.ndarray, "K S B"]]]:
    """Yield chunks for several seeds, on the device, and the place of each batch.

    A thread makes and sends the next chunk meanwhile. The arguments are as for
    `Stream.chunks`.
    """
    parts = [
        stream.chunks(seed, steps=steps, batch=batch, start=start, stop=stop, size=size)
        for seed in seeds
    ]

    def make(first: int) -> tuple[Examples, np.ndarray]:
        some = [next(part) for part in parts]
        # Seeds are concatenated: one transfer a chunk.
        data = jax.tree.map(lambda *x: jax.device_put(np.concatenate(x)), *some)
        count = min(size, stop - first)
        rows = np.arange(len(seeds) * count * batch, dtype=np.int32)
        return data, rows.reshape(len(seeds), count, batch)

    # One thread, so that chunks are taken in their order.
    firsts = range(start, stop, size)
    # Two ahead: one on the device, one in the making.
    yield from preprocess.prefetched(make, firsts, threads=1, ahead=2)
