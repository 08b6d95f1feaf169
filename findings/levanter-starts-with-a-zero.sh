#!/bin/sh
# marin-levanter 0.2.20.dev202606180959 with marin-haliax of the same version, jax
# 0.10.2, equinox 0.13.8, Python 3.11, 1 December 2026.
#
# Expected: a new LoRA adapter has a random A and a B of zeros, as in the paper, in PEFT
# and in the libraries that copied either.
# Observed: `loraize` with the default LoraConfig makes A zero and B random. An adapter
# that is not trained is zero all the same, but what assumes a B of zeros (a test for
# "not trained", an initial value for A, a learning rate for B alone) is wrong here.
#
#   lora_A is zero: True, lora_B is zero: False
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  marin-levanter==0.2.20.dev202606180959 jax==0.10.2 jaxlib==0.10.2 \
  equinox==0.13.8 GitPython
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END' 2>/dev/null
import sys

import haliax as hax
import jax
import numpy as np
from levanter.adaptor.lora import LoraConfig, loraize

linear = hax.nn.Linear.init(hax.Axis("in", 8), hax.Axis("out", 6), key=jax.random.key(0))
lora = loraize({"up": linear}, LoraConfig(r=2), key=jax.random.key(1))["up"].lora
zero = [not np.any(x.weight.array) for x in (lora.lora_A, lora.lora_B)]
print(f"lora_A is zero: {zero[0]}, lora_B is zero: {zero[1]}")
sys.exit(zero != [True, False])
END
