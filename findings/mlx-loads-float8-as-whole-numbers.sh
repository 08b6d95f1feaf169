#!/bin/sh
# mlx 0.32.4 with mlx-cpu 0.32.4, Python 3.11, 29 November 2026.
#
# Expected: MLX refuses a dtype that it lacks, or converts it to one that it has.
# Observed: mlx.core.load returns an F8_E4M3 tensor of a safetensors file as uint8, with
# its bytes read as integers: 1.0 becomes 56. It refuses an F8_E5M2 tensor.
#
#   F8_E4M3: mlx.core.uint8 [56, 56]
#   F8_E5M2: RuntimeError
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  mlx==0.32.4 mlx-cpu==0.32.4
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import json
import sys

import mlx.core as mx


def load(dtype, byte):
    entry = {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({"x": entry}).encode()
    with open("x.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + bytes([byte, byte]))
    try:
        x = mx.load("x.safetensors")["x"]
        return f"{x.dtype} {x.tolist()}"
    except Exception as error:
        return type(error).__name__


# 1.0 in both formats.
found = [load("F8_E4M3", 0x38), load("F8_E5M2", 0x3C)]
print(f"F8_E4M3: {found[0]}\nF8_E5M2: {found[1]}")
sys.exit(found != ["mlx.core.uint8 [56, 56]", "RuntimeError"])
END
