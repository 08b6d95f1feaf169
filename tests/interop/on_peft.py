"""What PEFT makes of an adapter: the oracle of the tests beside it."""

import copy
import pathlib

import peft
import torch
from peft.tuners.lora import LoraLayer

PREFIX = "base_model.model."


def lora_layers(model: peft.PeftModel) -> dict[str, LoraLayer]:
    """Returns the modules that PEFT has adapted, by their names in the base model."""
    return {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def loaded(base: torch.nn.Module, folder: pathlib.Path) -> peft.PeftModel:
    """Returns PEFT's model, after making sure that file and model agree on all keys.

    A warning is an error too: PEFT warns of keys of patterns that match nothing.
    """
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    result = model.load_adapter(folder, adapter_name="default")
    assert not result.missing_keys
    assert not result.unexpected_keys
    return model
