#!/bin/sh
# keras 3.15.1 with jax 0.10.2, Python 3.11, 1 December 2026.
#
# Expected: a model with LoRA that is saved and loaded goes on training where it was.
# Observed: saving merges the factors into the kernel, and loading sets both of them to
# zero. The gradient of each is a multiple of the other, so fit changes nothing for
# ever, without a word. (enable_lora itself sets one of them to zero.)
#
#   before saving: loss 2.00, after 30 more epochs 0.10
#   loaded:        loss 2.00, after 30 more epochs 2.00, factors at most 0.0
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

import keras
import numpy as np

keras.utils.set_random_seed(0)
dense = keras.layers.Dense(4, use_bias=False)
model = keras.Sequential([keras.Input((3,)), dense])
dense.enable_lora(2)
model.compile("sgd", "mse")
x, y = np.ones((8, 3), "float32"), np.ones((8, 4), "float32")
model.fit(x, y, epochs=3, verbose=0)
model.save("model.keras")
loaded = keras.models.load_model("model.keras")
losses = []
for one in (model, loaded):
    losses.append(one.evaluate(x, y, verbose=0))
    one.fit(x, y, epochs=30, verbose=0)
    losses.append(one.evaluate(x, y, verbose=0))
most = max(float(abs(np.asarray(v)).max()) for v in loaded.trainable_variables)
print(f"before saving: loss {losses[0]:.2f}, after 30 more epochs {losses[1]:.2f}")
print(
    f"loaded:        loss {losses[2]:.2f}, after 30 more epochs {losses[3]:.2f}, "
    f"factors at most {most}"
)
learned = losses[1] < losses[0] / 2
sys.exit(not (learned and losses[3] == losses[2] and most == 0))
END
