"""Compute an adapter's effect with PEFT: the oracle of the tests beside this file."""

import copy
import pathlib

import peft
import torch
from peft.tuners.lora import LoraLayer

PREFIX = "base_model.model."


def lora_layers(model: peft.PeftModel) -> dict[str, LoraLayer]:
    """Return the modules adapted by PEFT, by their names in the base model."""
    return {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def loaded(base: torch.nn.Module, folder: pathlib.Path) -> peft.PeftModel:
    """Return PEFT's model, after checking that file and model agree on all keys.

    A warning is an error too: PEFT warns about pattern keys that match nothing.
    """
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    result = model.load_adapter(folder, adapter_name="default")
    assert not result.missing_keys
    assert not result.unexpected_keys
    return model
