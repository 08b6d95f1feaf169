"""Tests of ComfyUI's loaders of LoRA files, against truncations by NumPy."""

import pytest

from tests.engines import harness, image_adapters


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comfyui")
    shapes = image_adapters.unet(folder)
    files, wanted = image_adapters.kohya_children(folder, shapes, "comfyui")
    return wanted, harness.run("comfyui", {"shapes": shapes, "files": files}, folder)


@pytest.mark.parametrize("label", image_adapters.KOHYA_CASES)
def test_a_child_is_the_truncation(label, answer, row):
    wanted, found = answer
    assert found.facts["left"][label] == []
    image_adapters.check_child(found, label, wanted[label], row, "ComfyUI")
