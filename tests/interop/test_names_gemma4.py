"""Compare tunix's Gemma 4, adapted by qwix, against transformers with PEFT.

The base is a random model of transformers, read by tunix's own loader: equal logits
without an update prove that the configurations agree. The adapters go the whole way,
from tunix's tree to a folder of PEFT.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import qwix
import safetensors.numpy
import torch
import transformers
from flax import nnx

import para_jax as para
from para_jax import names
from tests.interop import on_tunix

# tunix 0.1.7 asks flax 0.12.8 and jax 0.10.2 by many names that these will drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.slow,
]
LAYERS, T = 6, 6
TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
SIZES = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "global_head_dim": 8,
    "vocab_size": 31,
    "vocab_size_per_layer_input": 31,
    "sliding_window": 3,
    "final_logit_softcapping": 30.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TUNIX = {
    "num_layers": LAYERS,
    "embed_dim": 12,
    "hidden_dim": 20,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "global_key_size": 8,
    "num_embed": 31,
    "sliding_window_size": 3,
    "final_logit_softcap": 30.0,
    "param_dtype": jnp.float32,
}
# In transformers, in tunix, and the modules of all layers and of the model.
CASES = {
    "tunix": (
        {"hidden_size_per_layer_input": 5},
        {"per_layer_input_dim": 5},
        9 * LAYERS + 1,
    ),
    "tunix-shared-values": (
        {
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
        },
        {"k_eq_v_global": True, "num_global_kv_heads": 1},
        7 * LAYERS - 1,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def tunix():
    with on_tunix.models() as model:
        yield model


def torch_model(extra):
    torch.manual_seed(2)
    config = transformers.Gemma4TextConfig(**SIZES, **extra)
    model = transformers.Gemma4ForCausalLM(config).eval()
    with torch.no_grad():
        for x in model.parameters():
            x.normal_(0, 0.3)
    return model


def tunix_model(tunix, base, extra, folder):
    base.save_pretrained(folder)
    # tunix reads the names in the model with images.
    weights = {
        key.replace("model.", "model.language_model.", 1): x
        for key, x in safetensors.numpy.load_file(folder / "model.safetensors").items()
    }
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    config = tunix("gemma4.model").ModelConfig(**TUNIX, **extra)
    loader = tunix("gemma4.params_safetensors").create_model_from_safe_tensors
    return loader(str(folder), config, dtype=jnp.float32)


def tunix_logits(model):
    positions = jnp.broadcast_to(jnp.arange(T), TOKENS.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (len(TOKENS), T, T))
    run = nnx.jit(lambda model: model(jnp.asarray(TOKENS), positions, None, mask)[0])
    with jax.numpy_rank_promotion("allow"):
        return np.asarray(run(model))


def torch_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def adapted(model):
    kernels = ".*(_einsum|_proj|_gate|_projection)"
    rules = qwix.LoraProvider(module_path=kernels, rank=3, alpha=2.0)
    with jax.numpy_rank_promotion("allow"):
        result = qwix.apply_lora_to_model(
            model, rules, **model.get_model_input(), rngs=nnx.Rngs(1)
        )
    rng = np.random.default_rng(6)
    lora = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32) / 3,
        nnx.state(result, nnx.LoRAParam),
    )
    nnx.update(result, lora)
    return result


@pytest.mark.parametrize("ecosystem", CASES)
def test_a_tree_of_tunix_becomes_an_adapter_of_peft(tunix, ecosystem, tmp_path):
    extra, own, modules = CASES[ecosystem]
    base = torch_model(extra)
    model = tunix_model(tunix, base, own, tmp_path / "base")
    before = torch_logits(base)
    np.testing.assert_allclose(tunix_logits(model), before, rtol=0, atol=1e-5)
    trained = adapted(model)

    parent = para.from_tree(nnx.state(trained), alpha=2.0)
    found = names.to_hf(parent, "gemma4")
    para.save(found, tmp_path / "adapter", format="peft")

    assert len(found.adapters) == modules
    folder = str(tmp_path / "adapter")
    got = torch_logits(
        peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    )
    want = tunix_logits(trained)
    assert np.abs(want - before).max() > 0.5
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    back = names.from_hf(found, "gemma4", ecosystem=ecosystem)
    assert back.adapters.keys() == parent.adapters.keys()
