"""The methods that train adapters, one paper a file; `METHODS` names them all."""

from train.methods import adalora, dora, lora, sora
from train.methods.method import Config as Config
from train.methods.method import Method as Method
from train.methods.method import State as State

METHODS: dict[str, Config] = {
    "lora": lora.Lora(),
    "rslora": lora.RsLora(),
    "adalora": adalora.AdaLora(),
    "sora": sora.Sora(),
    "dora": dora.Dora(),
}
"""Each method by its name, with its default settings."""
