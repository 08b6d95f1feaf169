#!/bin/sh
# qwix 0.1.8 with flax 0.12.8 and jax 0.10.2, Python 3.11, 1 December 2026.
#
# Expected: qwix.apply_lora_to_model gives a weight its factors however the module writes
# the product of inputs and weight.
# Observed: it does for lax.dot_general, jnp.einsum and jnp.tensordot. With jnp.matmul,
# jnp.dot and the operator @ it raises TraceContextError, since these are compiled on
# their own. With lax.dot the weight gets no factors, without a word.
#
#   lax.dot_general: factors, jnp.einsum: factors, jnp.tensordot: factors
#   jnp.matmul: TraceContextError, jnp.dot: TraceContextError, @: TraceContextError
#   lax.dot: none
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  qwix==0.1.8 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import sys

import jax.numpy as jnp
import qwix
from flax import nnx
from jax import lax


class Model(nnx.Module):
    def __init__(self, product):
        self.w, self.product = nnx.Param(jnp.ones((4, 3))), product

    def __call__(self, x):
        return self.product(x, self.w[...])


def adapted(product):
    provider = qwix.LoraProvider(module_path=".*", rank=2, alpha=2.0)
    try:
        model = qwix.apply_lora_to_model(Model(product), provider, jnp.ones((2, 4)))
        return "factors" if hasattr(model, "w_lora_a") else "none"
    except Exception as error:
        return type(error).__name__


last = (((1,), (0,)), ((), ()))
lines = [
    {
        "lax.dot_general": lambda x, w: lax.dot_general(x, w, last),
        "jnp.einsum": lambda x, w: jnp.einsum("bd,dh->bh", x, w),
        "jnp.tensordot": lambda x, w: jnp.tensordot(x, w, 1),
    },
    {"jnp.matmul": jnp.matmul, "jnp.dot": jnp.dot, "@": lambda x, w: x @ w},
    {"lax.dot": lax.dot},
]
expected = ["factors", "TraceContextError", "none"]
same = True
for line, want in zip(lines, expected):
    found = {name: adapted(product) for name, product in line.items()}
    print(", ".join(f"{name}: {x}" for name, x in found.items()))
    same = same and set(found.values()) == {want}
sys.exit(not same)
END
