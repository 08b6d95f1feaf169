#!/bin/sh
# flax 0.12.8 with jax 0.10.2, Python 3.11, 1 December 2026.
#
# Expected: nnx.LoRALinear(dtype=bfloat16), "the dtype of the computation", returns
# bfloat16, as nnx.Linear of the same arguments does.
# Observed: it returns float32, since the argument does not reach the factors, and the sum
# of both parts is promoted. lora_dtype=bfloat16 beside it gives bfloat16.
#
#   Linear: bfloat16
#   LoRALinear: float32
#   LoRALinear with lora_dtype: bfloat16
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import jax.numpy as jnp
from flax import nnx

x = jnp.ones((2, 4))
common = {"dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
models = {
    "Linear": nnx.Linear(4, 3, **common),
    "LoRALinear": nnx.LoRALinear(4, 3, lora_rank=2, **common),
    "LoRALinear with lora_dtype": nnx.LoRALinear(
        4, 3, lora_rank=2, lora_dtype=jnp.bfloat16, **common
    ),
}
found = {name: str(model(x).dtype) for name, model in models.items()}
for name, dtype in found.items():
    print(f"{name}: {dtype}")
sys.exit(list(found.values()) != ["bfloat16", "float32", "bfloat16"])
END
