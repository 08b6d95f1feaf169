#!/bin/sh
# safetensors 0.8.0 (numpy 2.4.6, ml_dtypes 0.6.0), Python 3.11, 29 November 2026.
#
# Guess beforehand: what safetensors.numpy.save writes, safetensors.numpy.load reads.
# Seen: an ml_dtypes float8 array is saved, as F8_E4M3 and without a word; load then fails
# on the same bytes, while their header can be read.
#
#   saved: F8_E4M3
#   load: KeyError: 'F8_E4M3'
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.6.0
"$folder/venv/bin/python" - <<'END'
import json
import sys

import ml_dtypes
import numpy as np
import safetensors.numpy

saved = safetensors.numpy.save({"x": np.ones(4, ml_dtypes.float8_e4m3fn)})
size = int.from_bytes(saved[:8], "little")
dtype = json.loads(saved[8 : 8 + size])["x"]["dtype"]
print("saved:", dtype)
try:
    print("load:", safetensors.numpy.load(saved)["x"].dtype)
except Exception as error:
    print(f"load: {type(error).__name__}: {error}")
    sys.exit(dtype != "F8_E4M3")
sys.exit(1)
END
