"""Tests of sd-scripts' own loader and its resize_lora, against truncations by NumPy."""

import time

import numpy as np
import pytest
import safetensors.numpy

from tests.engines import harness, image_adapters

RANK = 8


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdscripts")
    shapes = image_adapters.unet(folder)
    files, wanted = image_adapters.kohya_children(folder, shapes, "sd-scripts")
    parent, _ = wide(folder / "wide.safetensors")
    resize = {"resized": [parent, RANK]}
    job = {"files": files, "resize": resize}
    return folder, wanted, harness.run("sdscripts", job, folder)


def wide(path):
    """Write a parent of rank 32 with different spectra in each module."""
    rng = np.random.default_rng(0)
    tensors, updates = {}, {}
    for i in range(24):
        down, up = rng.normal(size=(32, 320)), rng.normal(size=(320, 32))
        up *= np.exp(rng.normal()) * np.exp(-np.arange(32) / rng.uniform(3, 30))
        name = f"lora_unet_down_blocks_0_x_{i}"
        tensors[f"{name}.lora_down.weight"] = down.astype(np.float32)
        tensors[f"{name}.lora_up.weight"] = up.astype(np.float32)
        tensors[f"{name}.alpha"] = np.array(32, np.float32)
        updates[name] = up.astype(np.float32).astype(np.float64) @ down
    safetensors.numpy.save_file(tensors, path)
    return path, updates


@pytest.mark.parametrize("label", image_adapters.KOHYA_CASES)
def test_a_child_is_the_truncation(label, answer, row):
    _, wanted, found = answer
    image_adapters.check_child(found, label, wanted[label], row, "sd-scripts")


def relative(got, want):
    off = sum(((got.get(x, 0) - y) ** 2).sum() for x, y in want.items())
    return float(np.sqrt(off / sum((y**2).sum() for y in want.values())))


def factors_of(path):
    found = safetensors.numpy.load_file(path)
    result = {}
    for key, down in found.items():
        name, _, kind = key.partition(".")
        if kind == "lora_down.weight":
            up = found[f"{name}.lora_up.weight"].astype(np.float64)
            result[name] = found[f"{name}.alpha"] / len(down) * (up @ down)
    return result


def test_equal_ranks_lose_less_than_after_resize_lora(answer, row):
    folder, _, found = answer
    parent, want = wide(folder / "again.safetensors")
    resized = {
        name.removeprefix("resized/"): x
        for name, x in found.arrays.items()
        if name.startswith("resized/")
    }

    times = {"resize_lora": found.facts["seconds"]["resized"]}
    errors = {"resize_lora": relative(resized, want)}
    for scope in ("local", "global"):
        start = time.process_time()
        words = ("--rank", str(RANK), "--scope", scope)
        child = harness.compress(parent, folder / f"{scope}.safetensors", *words)
        times[scope] = time.process_time() - start
        errors[scope] = relative(factors_of(child), want)

    for name, error in errors.items():
        loaded = f"rank {RANK} of 32, 24 modules: {name}, {times[name]:.2f} s of CPU"
        row(
            engine="sd-scripts",
            version=found.version,
            loaded=loaded,
            difference=error,
            of="the parent, relative",
        )
    assert errors["local"] == pytest.approx(errors["resize_lora"], rel=1e-3)
    assert errors["global"] < errors["local"]
