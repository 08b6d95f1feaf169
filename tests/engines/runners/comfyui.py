"""Apply files to weights of Stable Diffusion's UNet by ComfyUI's own loaders.

The job: {"shapes": those of diffusers' weights, "files": {LABEL: PATH}}. The model
consists of names and weights only, since the loaders use nothing else. Arrays are the
updates, by LABEL/MODULE in diffusers' names; `facts["left"]` are keys without a module.
"""

import json
import logging
import os
import pathlib
import sys
import types

import diffusers  # noqa: F401, before the stand-ins
import numpy as np
import torch
import transformers  # noqa: F401

sys.path.append(str(pathlib.Path(__file__).parent))
(CHECKOUT,) = json.loads(os.environ["ENGINES_CHECKOUTS"]).values()
sys.path.append(CHECKOUT)

import stand_ins

stand_ins.install("av", "kornia", "torchaudio", "torchsde", "torchvision")
JOB = json.loads(pathlib.Path(sys.argv[1]).read_text())
del sys.argv[1:]  # It reads the command line.

from comfy import cli_args

cli_args.args.cpu = True

import comfy.lora
import comfy.lora_convert
import comfy.utils

# Of a UNet with the blocks of Stable Diffusion 1.5, as its detection tells them.
CONFIG = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}


def model(shapes: dict) -> tuple[types.SimpleNamespace, dict[str, str]]:
    """Build a model with ComfyUI's names, and map them to diffusers' names."""
    theirs = comfy.utils.unet_to_diffusers(dict(CONFIG))
    names = {f"diffusion_model.{theirs[f'{x}.weight']}": x for x in shapes}
    state = {key: torch.zeros(*shapes[x]) for key, x in names.items()}
    config = types.SimpleNamespace(unet_config=dict(CONFIG))
    return types.SimpleNamespace(state_dict=lambda: state, model_config=config), names


def main() -> None:
    out, arrays = pathlib.Path(JOB["out"]), {}
    version = (pathlib.Path(CHECKOUT) / "comfyui_version.py").read_text()
    facts = {"version": version.split('"')[1], "left": {}}
    said = []
    logging.getLogger().addHandler(Told(said))
    base, names = model(JOB["shapes"])
    for label, path in JOB["files"].items():
        said.clear()
        file = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path))
        places = comfy.lora.model_lora_keys_unet(base, {})
        patches = comfy.lora.load_lora(file, places)
        facts["left"][label] = [x for x in said if "not loaded" in x]
        for key, patch in patches.items():
            weight = base.state_dict()[key].clone()
            new = comfy.lora.calculate_weight(
                [(1.0, patch, 1.0, None, None)], weight, key
            )
            arrays[f"{label}/{names[key]}"] = new.numpy()
    np.savez(out / "arrays.npz", **arrays)
    (out / "facts.json").write_text(json.dumps(facts))


class Told(logging.Handler):
    """Keep the logged messages."""

    def __init__(self, said: list[str]):
        super().__init__()
        self.said = said

    def emit(self, record):
        self.said.append(record.getMessage())


if __name__ == "__main__":
    main()
