import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from train.data import fonts, pixels
from train.pretrain import augment

AUGMENT = jax.jit(augment.augment)


@pytest.fixture(scope="module")
def images():
    faces = fonts.find(fonts.folders()[:1])[:40:5]
    drawn = [fonts.draw(face, "AgЖ8") for face in faces]
    return np.stack([x for pictures in drawn for x in pictures.values()])


@pytest.fixture(scope="module")
def changed(images):
    key = jax.random.key(0)
    return np.asarray(AUGMENT(key, np.tile(images, (12, 1, 1))))


def test_plain_pictures_are_made_smaller_as_pillow_does(images):
    got = np.asarray(augment.plain(images))

    for small, image in zip(got, images, strict=True):
        want = Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(small, np.asarray(want) / 255, atol=0.004)


def test_pixels_are_three_equal_channels_from_minus_one_to_one():
    got = pixels.as_input(jnp.array([[[0.0, 0.5], [0.75, 1.0]]]))

    assert got.shape == (1, 2, 2, 3)
    for channel in range(3):
        np.testing.assert_allclose(got[0, :, :, channel], [[-1, 0], [0.5, 1]])


def test_every_picture_is_changed_in_its_own_way(images, changed):
    copies = changed.reshape(12, len(images), 32, 32)
    assert np.abs(copies[0] - copies[1]).mean(axis=(1, 2)).min() > 0.01


def test_the_key_decides(images):
    one, same, other = (AUGMENT(jax.random.key(i), images[:3]) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.3


def test_one_in_four_is_dark_on_bright(changed):
    corners = changed[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=1)
    assert 0.15 < np.mean(corners > 0.5) < 0.35


def test_what_is_changed_still_shows_ink_in_range(changed):
    assert changed.shape[1:] == (32, 32)
    assert (changed.max(axis=(1, 2)) - changed.min(axis=(1, 2))).min() > 0.3
    assert changed.min() > -0.8
    assert changed.max() < 1.8


def test_the_ink_stays_inside(images, changed):
    # Its weight, on average, is about that of the plain picture: nothing is cut off.
    bright = changed[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=1) > 0.5
    weight = changed[~bright].clip(0, 1).mean()
    assert 0.5 < weight / np.asarray(augment.plain(images)).mean() < 1.5
