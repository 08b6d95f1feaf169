#!/bin/sh
# skyrl 0.4.0 (its engine tx) with jax 0.10.2, flax 0.12.8, transformers 5.8.0, Python
# 3.12, 1 December 2026. Needs Python 3.12 or newer: PYTHON=python3.12.
#
# Expected: tx writes an adapter of a mixture of experts so that the file holds all of
# its weights, `lora_A [r, inputs]` and `lora_B [outputs, r]` for each expert.
# Observed: `save_safetensors`, of which tx's sampling checkpoints are made, cuts the
# wrong axes of experts to the rank. lora_A keeps the first `rank` inputs; lora_B keeps
# the first `rank` experts, and the others' tensors are copies of the last of them.
#
#   hidden size 16, 12 experts, rank 8
#   gate_proj.lora_A of expert 0: [8, 8]
#   gate_proj.lora_B of expert 11 is that of expert 7: True, in the model: False
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 transformers==5.8.0 \
  safetensors==0.7.0 pydantic==2.12.5 cloudpathlib==0.23.0 rich==14.2.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  skyrl==0.4.0
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END' 2>/dev/null
import sys
import types

# tx uses PEFT for adapter_config.json alone, which this does not write; PEFT needs
# PyTorch.
sys.modules["peft"] = types.ModuleType("peft")

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from skyrl.tinker.types import LoraConfig
from skyrl.tx.layers.lora import init_lora_adapter
from skyrl.tx.models.configs import Qwen3Config
from skyrl.tx.models.qwen3 import Qwen3ForCausalLM
from skyrl.tx.utils.models import save_safetensors
from transformers import Qwen3MoeConfig

EXPERTS, RANK = 12, 8
base = Qwen3MoeConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, moe_intermediate_size=24,
    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    num_experts=EXPERTS, num_experts_per_tok=2, tie_word_embeddings=False,
    rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
)
config = Qwen3Config(
    base, max_lora_adapters=2, max_lora_rank=RANK, shard_attention_heads=False
)
kinds = (jax.sharding.AxisType.Auto,) * 3
mesh = jax.make_mesh((1, 1, 1), ("fsdp", "ep", "tp"), axis_types=kinds)
with jax.set_mesh(mesh):
    model = Qwen3ForCausalLM(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    init_lora_adapter(model, 1, LoraConfig(rank=RANK, alpha=16.0, seed=0))
    gate = model.model.layers._stacked.mlp.experts.gate_proj
    random = np.random.default_rng(0).normal(size=gate.lora_B.shape)
    gate.lora_B[...] = jnp.asarray(random, jnp.float32)
    save_safetensors(
        config, model, "adapter.safetensors", adapter_index=1, rank=RANK,
        filter_fn=lambda path: "lora_A" in path or "lora_B" in path,
    )
file = safetensors.numpy.load_file("adapter.safetensors")
name = "model.layers.0.mlp.experts.{}.gate_proj.lora_{}"
shape = list(file[name.format(0, "A")].shape)
copied = np.array_equal(file[name.format(7, "B")], file[name.format(11, "B")])
own = np.array_equal(random[0, 1, 7], random[0, 1, 11])
print(f"hidden size 16, {EXPERTS} experts, rank {RANK}")
print(f"gate_proj.lora_A of expert 0: {shape}")
print(f"gate_proj.lora_B of expert 11 is that of expert 7: {copied}, in the model: {own}")
sys.exit((shape, copied, own) != ([8, 8], True, False))
END
