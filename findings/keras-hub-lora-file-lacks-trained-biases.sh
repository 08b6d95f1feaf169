#!/bin/sh
# keras-hub 0.32.0 with keras 3.15.1 and jax 0.10.2, Python 3.11, 1 December 2026.
#
# Expected: after enable_lora, "freeze all weights on the backbone, while enabling LoRA",
# a file of save_lora_weights holds all that was trained: loaded into the same base
# model, it has the outputs of the trained one.
# Observed: the biases of the layers with LoRA stay trainable (BERT, Qwen 2.5),
# and the file leaves them out. The loaded model differs, without a word.
#
#   trainable: bias, lora_kernel_a, lora_kernel_b
#   in the file: lora_kernel_a, lora_kernel_b, rank
#   outputs differ: True, without the biases' training: False
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 regex tokenizers sentencepiece
# Its other dependencies, TensorFlow among them, are not imported here.
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  keras-hub==0.32.0
cd "$folder"
KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END'
import sys

import h5py
import keras
import keras_hub
import numpy as np


def base():
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8}
    return keras_hub.models.BertBackbone(vocabulary_size=9, **sizes)


def outputs(model):
    x = np.array([[1, 2, 3]])
    ones, zeros = np.ones_like(x), np.zeros_like(x)
    given = {"token_ids": x, "padding_mask": ones, "segment_ids": zeros}
    return np.asarray(model(given)["sequence_output"])


def differ(names):
    """Train what has these names, save, load into the same base, and compare."""
    trained = base()
    trained.enable_lora(2)
    for x in trained.trainable_variables:
        if x.name in names:
            x.assign(0.1 * np.ones(x.shape))
    trained.save_lora_weights("x.lora.h5")
    loaded = base()
    loaded.load_lora_weights("x.lora.h5")
    return bool(abs(outputs(trained) - outputs(loaded)).max() > 1e-3)


model = base()
model.enable_lora(2)
names = sorted({x.name for x in model.trainable_variables})
found = differ(names), differ([x for x in names if "lora" in x])
inside = set()
with h5py.File("x.lora.h5") as file:
    file.visititems(
        lambda name, x: inside.add(name.split("/")[-1]) if hasattr(x, "shape") else None
    )
print("trainable:", ", ".join(names))
print("in the file:", ", ".join(sorted(inside)))
print(f"outputs differ: {found[0]}, without the biases' training: {found[1]}")
sys.exit(not ("bias" in names and "bias" not in inside and found == (True, False)))
END
