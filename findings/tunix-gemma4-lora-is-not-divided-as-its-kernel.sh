#!/bin/sh
# google-tunix 0.1.7, qwix 0.1.8, flax 0.12.8, jax 0.10.2, Python 3.11, 1 December 2026.
#
# Expected: a model of tunix that qwix has adapted computes what the same model does with
# `kernel + alpha / rank * a @ b` in place of each kernel.
# Observed: not for `per_layer_model_projection` of Gemma 4. It multiplies its kernel with
# 1 / sqrt(embed_dim) before the einsum, and qwix adds the update to the einsum's output:
# the update counts sqrt(embed_dim) times as much as one merged into the kernel.
#
#   merged as it is:           differs
#   merged sqrt(16) times:     equal
#   another projection, as is: equal
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 qwix==0.1.8 jaxtyping==0.3.11 \
  safetensors==0.8.0 huggingface-hub==2.4.0 etils==1.13.0 sentencepiece==0.2.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  google-tunix==0.1.7
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'END'
import importlib
import importlib.util
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx

# tunix's own __init__ imports all of its trainers, which its models do not need.
package = types.ModuleType("tunix")
found = importlib.util.find_spec("tunix")
package.__path__ = [str(pathlib.Path(found.origin).parent)]
sys.modules["tunix"] = package
gemma4 = importlib.import_module("tunix.models.gemma4.model")

D, RANK, ALPHA = 16, 2, 3.0
config = gemma4.ModelConfig(
    num_layers=6, num_embed=31, embed_dim=D, hidden_dim=20, num_heads=2, head_dim=6,
    num_kv_heads=1, global_key_size=8, sliding_window_size=3, per_layer_input_dim=4,
)
TOKENS = jnp.array([[3, 1, 4, 1, 5, 9]])
MASK = jnp.tril(jnp.ones((1, 6, 6), bool))


def logits(model):
    return np.asarray(model(TOKENS, jnp.arange(6)[None], None, MASK)[0])


def adapted(pattern):
    model = gemma4.Gemma4(config, rngs=nnx.Rngs(0))
    rules = qwix.LoraProvider(module_path=pattern, rank=RANK, alpha=ALPHA)
    lora = qwix.apply_lora_to_model(
        model, rules, **model.get_model_input(), rngs=nnx.Rngs(1)
    )
    rng = np.random.default_rng(0)
    random = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32),
        nnx.state(lora, nnx.LoRAParam),
    )
    nnx.update(lora, random)
    return lora


def merged(lora, holder, times):
    """Return the logits with the update of one module in its kernel."""
    model = gemma4.Gemma4(config, rngs=nnx.Rngs(0))
    old, new = holder(lora), holder(model)
    a, b = (np.asarray(x[...]) for x in (old.w_lora_a, old.w_lora_b))
    update = ALPHA / RANK * np.tensordot(a, b, axes=1)
    new.w[...] = new.w[...] + times * jnp.asarray(update.reshape(new.w.shape))
    return logits(model)


def same(x, y):
    return "equal" if np.abs(x - y).max() < 1e-3 * np.abs(y).max() else "differs"


projection = adapted(".*per_layer_model_projection")
gate = adapted("layers/0/per_layer_input_gate")
of_all = lambda model: model.embedder.per_layer_model_projection
of_one = lambda model: model.layers[0].per_layer_input_gate
seen = [
    same(merged(projection, of_all, 1), logits(projection)),
    same(merged(projection, of_all, D**0.5), logits(projection)),
    same(merged(gate, of_one, 1), logits(gate)),
]
print(f"merged as it is:           {seen[0]}")
print(f"merged sqrt(16) times:     {seen[1]}")
print(f"another projection, as is: {seen[2]}")
sys.exit(seen != ["differs", "equal", "equal"])
END
