"""Training methods for adapters, one paper a file; `METHODS` names them all."""

from train.methods import (
    adalora,
    annealed,
    dora,
    dylora,
    gora,
    lora,
    lora_plus,
    matryoshka,
    milora,
    pissa,
    sora,
)
from train.methods.method import Config as Config, Method as Method, State as State

METHODS: dict[str, Config] = {
    "lora": lora.Lora(),
    "rslora": lora.RsLora(),
    "lora+": lora_plus.LoraPlus(),
    "pissa": pissa.Pissa(),
    "milora": milora.Milora(),
    "adalora": adalora.AdaLora(),
    "sora": sora.Sora(),
    "dora": dora.Dora(),
    "gora": gora.Gora(),
    "dylora": dylora.Dylora(),
    "matryoshka": matryoshka.Matryoshka(),
    "annealed": annealed.Annealed(),
}
"""Each method by its name, with its default settings."""
