"""Merge files into a UNet by sd-scripts' own loader, and run its resize_lora.

The job: {"files": {LABEL: PATH}, "resize": {LABEL: [PATH, RANK]}}. Arrays are updates,
by LABEL/MODULE: of a file the difference of the merged weights, of a resized one the
product of its factors. `facts["seconds"]` is the time of resizing.
"""

import json
import os
import pathlib
import sys
import time

import diffusers  # noqa: F401, before the stand-ins
import numpy as np
import safetensors.torch
import torch
import transformers  # noqa: F401

sys.path.append(str(pathlib.Path(__file__).parent))
sys.path.append(str(pathlib.Path(__file__).parents[1]))
(CHECKOUT,) = json.loads(os.environ["ENGINES_CHECKOUTS"]).values()
sys.path.append(CHECKOUT)

import image_models
import stand_ins

stand_ins.install("cv2", "imagesize", "rich", "toml", "torchvision", "voluptuous")
# They make pictures, with names of transformers 4.
for name in ("lpw_stable_diffusion", "sdxl_lpw_stable_diffusion"):
    stand_ins.replace(f"library.{name}")

from networks import lora, resize_lora


def merged(path: str) -> dict[str, np.ndarray]:
    """Merge a file into weights of zero, and return the result."""
    unet = image_models.seeded("sd")
    with torch.no_grad():
        for x in unet.parameters():
            x.zero_()
    # The class for inference has `merge_to`; the other is for training.
    network, state = lora.create_network_from_weights(
        1.0, path, None, [], unet, for_inference=True
    )
    network.merge_to([], unet, state, torch.float32, "cpu")
    found = {x: unet.get_submodule(x).weight for x in image_models.shapes(unet)}
    return {x: y.detach().numpy() for x, y in found.items() if y.any()}


def resized(path: str, rank: int) -> tuple[dict, float]:
    """Return the updates of a resized file, by kohya's names, and the seconds."""
    state = safetensors.torch.load_file(path)
    start = time.process_time()
    new, _, _ = resize_lora.resize_lora_model(
        state, rank, rank, torch.float32, "cpu", None, None, False
    )
    seconds = time.process_time() - start
    result = {}
    for key, down in new.items():
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            up = new[f"{name}.lora_up.weight"].flatten(1).double()
            scale = float(new[f"{name}.alpha"]) / len(down)
            update = scale * up @ down.flatten(1).double()
            result[name] = update.reshape(len(up), *down.shape[1:]).numpy()
    return result, seconds


def main() -> None:
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    commit = pathlib.Path(CHECKOUT).name.rpartition("-")[2]
    facts, arrays = {"version": commit[:7], "seconds": {}}, {}
    for label, path in job["files"].items():
        arrays |= {f"{label}/{x}": y for x, y in merged(path).items()}
    for label, (path, rank) in job["resize"].items():
        found, facts["seconds"][label] = resized(path, rank)
        arrays |= {f"{label}/{x}": y for x, y in found.items()}
    out = pathlib.Path(job["out"])
    np.savez(out / "arrays.npz", **arrays)
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
