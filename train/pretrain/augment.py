"""Augmented pictures of glyphs, as from a camera or a hand, drawn anew at every step.

Axis letters: `B` pictures, `S` pixels of a drawing, `P` pixels of what an encoder sees.
Traceable under `jit`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from para_jax import Array

SIZE = 32
"""The side of an encoder's picture, in pixels."""

_TURN = np.pi / 9
_SHEAR = 0.3
_ZOOM = (0.85, 1.5)  # Of the drawing: more than 1 is smaller.
_SHIFT = 4.0  # Pixels of the drawing.
_WAVE = 1.5  # Likewise: the standard deviation of the bends.
_BLUR = (0.4, 2.2)
_NOISE = 0.12
_INVERTED = 0.25


def augment(
    key: jax.Array, images: UInt8[Array, "B S S"]
) -> Float[jax.Array, "B 32 32"]:
    """Bend, turn, move, thicken or thin pictures, and add noise.

    From 0 to 1, but for the noise. One in four is dark on bright.
    """
    # A key a picture, so that each is changed in its own way.
    keys = jax.random.split(key, len(images))
    return jax.vmap(_augment)(keys, jnp.asarray(images))


def plain(
    images: UInt8[Array, "B S S"],
) -> Float[jax.Array, "B 32 32"]:
    """Return unchanged pictures, from 0 to 1, at the encoder's size."""
    shape = (len(images), SIZE, SIZE)
    return jax.image.resize(images.astype(jnp.float32) / 255, shape, "linear")


def _augment(
    key: jax.Array, image: UInt8[jax.Array, "S S"]
) -> Float[jax.Array, "32 32"]:
    stroke, place, light, noise = jax.random.split(key, 4)
    image = _stroked(stroke, image.astype(jnp.float32) / 255)
    sample = functools.partial(jax.scipy.ndimage.map_coordinates, order=1)
    image = sample(image, list(_places(place, image.shape[0])))
    strength, inverted = jax.random.uniform(light, (2,))
    image = image * (0.5 + 0.5 * strength)
    image = jnp.where(inverted < _INVERTED, 1 - image, image)
    amount, grain = jax.random.split(noise)
    # Squared, so that most pictures have little noise.
    level = _NOISE * jnp.square(jax.random.uniform(amount))
    return image + level * jax.random.normal(grain, image.shape)


def _stroked(key: jax.Array, image: Float[jax.Array, "S S"]) -> Float[jax.Array, "S S"]:
    """Blur a picture and cut it off at some grey: a thicker stroke."""
    width, steep, middle = jax.random.uniform(key, (3,))
    sigma = _BLUR[0] + (_BLUR[1] - _BLUR[0]) * width
    at = jnp.arange(len(image))
    distance = jnp.square(at[:, None] - at[None])
    # Rows of a softmax are normalised at the borders as well.
    blur = jax.nn.softmax(-distance / (2 * sigma**2), axis=1)
    image = blur @ image @ blur.T
    # Blurring lowers the peak: thin strokes would vanish at the cut.
    image = image / jnp.maximum(image.max(), 1e-3)
    grey = 0.25 + 0.35 * middle
    return jnp.clip((image - grey) * (1 + 3 * steep) + grey, 0, 1)


def _places(key: jax.Array, size: int) -> Float[jax.Array, "2 32 32"]:
    """Return the place of each pixel in a drawing of `size` pixels."""
    linear, shift, wave = jax.random.split(key, 3)
    turn, shear, zoom, stretch = jax.random.uniform(linear, (4,), minval=-1)
    angle, larger = _TURN * turn, _ZOOM[0] + (_ZOOM[1] - _ZOOM[0]) * (zoom + 1) / 2
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    rotation = jnp.array([[cosine, -sine], [sine, cosine]])
    skew = jnp.array([[1 + 0.15 * stretch, _SHEAR * shear], [0, 1 - 0.15 * stretch]])
    step = size / SIZE
    at = (jnp.arange(SIZE) - (SIZE - 1) / 2) * step
    grid = jnp.stack(jnp.meshgrid(at, at, indexing="ij"))
    moved = jnp.einsum("ij,jyx->iyx", larger * rotation @ skew, grid)
    moved += jax.random.uniform(shift, (2, 1, 1), minval=-_SHIFT, maxval=_SHIFT)
    # A coarse 4 x 4 grid of shifts, interpolated: smooth bends.
    bends = _WAVE * jax.random.normal(wave, (2, 4, 4))
    bends = jax.image.resize(bends, (2, SIZE, SIZE), "cubic")
    return moved + bends + (size - 1) / 2
