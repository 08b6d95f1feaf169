#!/bin/sh
# orbax-checkpoint 0.12.8 with jax 0.10.2, Python 3.11, 1 December 2026.
#
# Expected: Orbax (v1) loads an array into a target of another shape with an error,
# whether the target is described for JAX or for NumPy.
# Observed: it refuses if the target is a jax.ShapeDtypeStruct. If it is a NumPy array, its
# dtype is obeyed and its shape is not: the stored shape comes back, without a word.
#
#   stored (4,) float32
#   into (6,) int32 of JAX: ValueError
#   into (6,) int32 of NumPy: (4,) int32
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>errors.txt <<'END' || { cat errors.txt; exit 1; }
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

path = pathlib.Path.cwd() / "x"
ocp.save(path, {"x": jnp.ones(4)})
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def into(target):
    try:
        x = ocp.load(path, {"x": target})["x"]
        return f"{x.shape} {x.dtype}"
    except Exception as error:
        return type(error).__name__


found = [
    into(jax.ShapeDtypeStruct((6,), jnp.int32, sharding=here)),
    into(np.zeros(6, np.int32)),
]
print("stored (4,) float32")
print(f"into (6,) int32 of JAX: {found[0]}\ninto (6,) int32 of NumPy: {found[1]}")
sys.exit(found != ["ValueError", "(4,) int32"])
END
