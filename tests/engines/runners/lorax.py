"""Run LoRAX's own loading of adapters, type by type, for one device.

Its packages are imported without their `__init__`, which would import the server. Ranks
are padded as on a machine with its kernels.
"""

import pathlib
import sys
import types

import numpy as np
import safetensors.torch
import torch

sys.path.append(str(pathlib.Path(__file__).parent))

import answers
import stand_ins

SERVER = answers.checkout() / "server" / "lorax_server"
stand_ins.without_init("lorax_server", SERVER)
stand_ins.without_init("lorax_server.utils", SERVER / "utils")
stand_ins.install("boto3", "botocore")

from lorax_server.adapters.lora import LoraConfig, LoraWeights
from lorax_server.utils import punica

punica.HAS_SGMV = True

TYPES = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}


class Model:
    """Provide the parts of a model that `LoraWeights.load` uses, for one device."""

    world_size, dtype = 1, torch.float32

    def __init__(self, layers: int):
        weight = types.SimpleNamespace(weight=torch.zeros(1))
        linear = types.SimpleNamespace(linear=weight)
        layer = types.SimpleNamespace(base_layer=linear)
        self.layers = layers
        self.target_to_layer = {
            (number, name): (f"model.layers.{number}.{owner}.{name}", layer)
            for number in range(layers)
            for name, owner in TYPES.items()
        }

    def get_num_layers_for_type(self, name: str) -> int:
        return self.layers

    def shard_lora_weights(self, a: list, b: list, name: str) -> tuple[list, list]:
        return a, b


def loaded(path: str, config, _: int) -> dict[str, np.ndarray]:
    """Return `s B A` of each module of each loaded type."""
    layers = config.num_hidden_layers
    model, settings = Model(layers), LoraConfig.load(path, None)
    file = pathlib.Path(path) / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    names = tuple(name for name, _ in model.target_to_layer.values())
    modules, used = settings.map_weights_for_model(tensors, names)
    left, found = set(tensors) - used, {}
    for name, owner in TYPES.items():
        weights = LoraWeights.load(settings, model, modules, name, left)
        for number in range(layers) if weights else ():
            a, b = weights.weights_a[number], weights.weights_b[number]
            a = a if a.shape[1] == b.shape[0] else a.T
            product = (a.double() @ b.double()).T.numpy()
            found[f"model.layers.{number}.{owner}.{name}"] = product
    return found


if __name__ == "__main__":
    answers.write(loaded, answers.commit())
