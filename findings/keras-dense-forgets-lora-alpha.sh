#!/bin/sh
# keras 3.15.1 with jax 0.10.2, Python 3.11, 1 December 2026.
#
# Expected: Dense(lora_rank=2, lora_alpha=8) scales its update by 8 / 2, as EinsumDense
# of the same arguments does, and as its documentation says.
# Observed: when Dense and Embedding are built, their alpha becomes the rank, so the
# scale is 1. A layer whose LoRA was enabled with alpha 8 loses it in the same way when
# it is made from its own configuration.
#
#   Dense 2, EinsumDense 8, Embedding 2; Dense of its own configuration 2
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  keras==3.15.1 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END'
import sys

from keras import layers

given = {"lora_rank": 2, "lora_alpha": 8}
made = [
    layers.Dense(4, **given),
    layers.EinsumDense("ab,bc->ac", 4, **given),
    layers.Embedding(5, 4, **given),
]
for layer in made:
    layer.build((None, 3))
enabled = layers.Dense(4)
enabled.build((None, 3))
enabled.enable_lora(2, lora_alpha=8)
copied = layers.Dense.from_config(enabled.get_config())
copied.build((None, 3))
alphas = [x.lora_alpha for x in (*made, copied)]
print("Dense {}, EinsumDense {}, Embedding {}; Dense of its own configuration {}".format(*alphas))
sys.exit(alphas != [2, 8, 2, 2])
END
