#!/bin/sh
# mlx-lm 0.32.2 with mlx 0.32.4 and mlx-cpu 0.32.4, Python 3.11, 1 December 2026.
#
# Expected: linear_to_lora_layers(model, num_layers, ...), "the number of blocks to convert
# to lora layers starting from the last layer", converts none if num_layers is 0.
# Observed: it converts all of them, as for -1: the slice from the end begins at -0.
#
#   of 3 blocks: 2 -> [1, 2], 1 -> [2], 0 -> [0, 1, 2]
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  mlx-lm==0.32.2 mlx==0.32.4 mlx-cpu==0.32.4 transformers==5.24.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>errors.txt <<'END' || { cat errors.txt; exit 1; }
import sys

from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.tuner.utils import linear_to_lora_layers

SIZES = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 50,
}


def converted(count):
    model = llama.Model(llama.ModelArgs(**SIZES))
    linear_to_lora_layers(model, count, {"rank": 2, "scale": 1.0, "dropout": 0.0})
    names = [name for name, _ in tree_flatten(model.parameters()) if "lora_a" in name]
    return sorted({int(name.split(".")[2]) for name in names})


found = {count: converted(count) for count in (2, 1, 0)}
print("of 3 blocks:", ", ".join(f"{count} -> {x}" for count, x in found.items()))
sys.exit(found != {2: [1, 2], 1: [2], 0: [0, 1, 2]})
END
