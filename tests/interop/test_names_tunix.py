"""Compare tunix with merged updates against transformers with PEFT.

The base is a random model of transformers, read by tunix's own loaders. Equal logits
without an update prove that the configurations agree. Then each kernel of tunix gets an
update in its own axes, and PEFT the same update under its own names. The last test
takes a model adapted by qwix through the whole path, starting from its tree.
"""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import qwix
import torch
import transformers
from flax import nnx

import para_jax as para
from para_jax import names
from tests.interop import on_tunix

# tunix 0.1.7 asks flax 0.12.8 and jax 0.10.2 by many names that these will drop.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

D, F, N, K, H, V, LAYERS, T = 12, 20, 4, 2, 6, 31, 2, 6
SIZES = {"num_layers": LAYERS, "hidden_dim": F, "num_heads": N, "num_kv_heads": K}
TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
GEMMA = {"sliding_window": 3, "query_pre_attn_scalar": H}


@dataclasses.dataclass(frozen=True)
class Family:
    """Hold a model in both libraries.

    Attributes:
      torch: The class of transformers, and its configuration's arguments.
      loader: tunix's module of weights.
      model: tunix's module of the model.
      config: The arguments of tunix's configuration.
      fused: Whether keys and values are one kernel.
      width: The size of the residual.
    """

    torch: tuple[str, dict[str, object]]
    loader: str
    model: str
    config: dict[str, object]
    fused: bool = False
    width: int = D


def _rope(theta):  # tunix's Llama 3 and Qwen 3 have 1e6, whatever is configured.
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def _dense(theta):
    return {"vocab_size": V, "rope_theta": theta, "norm_eps": 1e-6}


FAMILIES = {
    "llama3": Family(
        ("Llama", _rope(1e6)), "llama3.params", "llama3.model", _dense(1_000_000)
    ),
    "qwen2.5": Family(
        ("Qwen2", _rope(1e4)),
        "qwen2.params",
        "qwen2.model",
        _dense(10_000),
        width=N * H,  # Its heads have no size of their own in transformers.
    ),
    "qwen3": Family(
        ("Qwen3", _rope(1e6)), "qwen3.params", "qwen3.model", _dense(1_000_000)
    ),
    "gemma2": Family(
        ("Gemma2", GEMMA | {"attn_implementation": "eager"}),
        "gemma.params_safetensors",
        "gemma.model",
        {
            "num_embed": V,
            "sliding_window_size": 3,
            "final_logit_softcap": 30.0,
            "attn_logits_soft_cap": 50.0,
            "use_post_attn_norm": True,
            "use_post_ffw_norm": True,
        },
        fused=True,
    ),
    "gemma3": Family(
        ("Gemma3Text", GEMMA),
        "gemma3.params_safetensors",
        "gemma3.model",
        {"num_embed": V, "sliding_window_size": 3, "param_dtype": jnp.float32},
        fused=True,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def tunix():
    with on_tunix.models() as model:
        yield model


def torch_model(family):
    kind, extra = family.torch
    sizes = {
        "hidden_size": family.width,
        "intermediate_size": F,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": N,
        "num_key_value_heads": K,
        "head_dim": H,
        "vocab_size": V,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": family.fused,
    }
    torch.manual_seed(2)
    config = getattr(transformers, f"{kind}Config")(**sizes, **extra)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for x in model.parameters():
            x.normal_(0, 0.5)
    return model


def tunix_model(tunix, family, folder):
    model = tunix(family.model)
    config = {**SIZES, "embed_dim": family.width, "head_dim": H, **family.config}
    if family.model == "gemma.model":
        kinds = model.AttentionType
        config["attention_types"] = (kinds.LOCAL_SLIDING, kinds.GLOBAL)
    loader = tunix(family.loader).create_model_from_safe_tensors
    return loader(str(folder), model.ModelConfig(**config), dtype=jnp.float32)


def kernels(family):
    """Return each adapter's kernel, part, axes and einsum, by its path in a layer.

    The axes are those of the update's inputs and outputs, as LoRA has them; the einsum
    turns them to the order in which the kernel has them.
    """
    d = family.width
    mlp = {
        "mlp/gate_proj": ("mlp.gate_proj.kernel", (), (d, F), "df->df"),
        "mlp/up_proj": ("mlp.up_proj.kernel", (), (d, F), "df->df"),
        "mlp/down_proj": ("mlp.down_proj.kernel", (), (F, d), "fd->fd"),
    }
    if family.fused:
        return {
            "attn/q_einsum": ("attn.q_einsum.w", (), (d, N, H), "dnh->ndh"),
            "attn/kv_einsum/k": ("attn.kv_einsum.w", (0,), (d, K, H), "dkh->kdh"),
            "attn/kv_einsum/v": ("attn.kv_einsum.w", (1,), (d, K, H), "dkh->kdh"),
            "attn/attn_vec_einsum": (
                "attn.attn_vec_einsum.w",
                (),
                (N, H, d),
                "nhd->nhd",
            ),
            **mlp,
        }
    return {
        "attn/q_proj": ("attn.q_proj.w", (), (d, N, H), "dnh->dnh"),
        "attn/k_proj": ("attn.k_proj.w", (), (d, K, H), "dkh->dkh"),
        "attn/v_proj": ("attn.v_proj.w", (), (d, K, H), "dkh->dkh"),
        "attn/o_proj": ("attn.o_proj.w", (), (N, H, d), "nhd->nhd"),
        **mlp,
    }


def adapters_of(family):
    rng = np.random.default_rng(4)
    result = {}
    for i in range(LAYERS):
        for path, (_, _, axes, _) in kernels(family).items():
            inputs = N * H if axes[:2] == (N, H) else axes[0]
            outputs = int(np.prod(axes)) // inputs
            a, b = rng.normal(size=(inputs, 2)), rng.normal(size=(2, outputs))
            result[f"layers/{i}/{path}"] = para.Adapter(
                a=a.astype(np.float32), b=b.astype(np.float32), scale=0.25
            )
    return result


def update(model, family, adapters):
    """Add each adapter's update to its kernel."""
    for i, layer in enumerate(model.layers):
        for path, (kernel, part, axes, order) in kernels(family).items():
            x = adapters[f"layers/{i}/{path}"]
            delta = x.scale * (x.a.astype(np.float64) @ x.b.astype(np.float64))
            holder = layer
            for name in kernel.split("."):
                holder = getattr(holder, name)
            value = np.array(holder[...])
            value[part] += np.einsum(order, delta.reshape(axes)).astype(np.float32)
            holder[...] = jnp.asarray(value)


def tunix_logits(model):
    positions = jnp.broadcast_to(jnp.arange(T), TOKENS.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (len(TOKENS), T, T))
    run = nnx.jit(lambda model: model(jnp.asarray(TOKENS), positions, None, mask)[0])
    with jax.numpy_rank_promotion("allow"):
        return np.asarray(run(model))


def torch_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def through_peft(base, folder):
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_the_logits_of_tunix_are_those_of_peft(tunix, name, tmp_path):
    family = FAMILIES[name]
    base = torch_model(family)
    base.save_pretrained(tmp_path / "base")
    model = tunix_model(tunix, family, tmp_path / "base")
    before = torch_logits(base)
    np.testing.assert_allclose(tunix_logits(model), before, rtol=0, atol=1e-4)
    adapters = adapters_of(family)

    found = names.to_hf(para.Checkpoint(adapters=adapters), name)
    para.save(found, tmp_path / "adapter", format="peft")

    update(model, family, adapters)
    got = torch_logits(through_peft(base, tmp_path / "adapter"))
    want = tunix_logits(model)
    assert np.abs(want - before).max() > 1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.layout("tunix", "to PEFT")
@pytest.mark.parametrize("name", ["llama3", "gemma3"])  # Without, and with fusion.
def test_a_tree_of_tunix_becomes_an_adapter_of_peft(tunix, name, tmp_path):
    family = FAMILIES[name]
    base = torch_model(family)
    base.save_pretrained(tmp_path / "base")
    model = tunix_model(tunix, family, tmp_path / "base")
    rules = qwix.LoraProvider(module_path=".*(_einsum|_proj)", rank=3, alpha=2.0)
    inputs = model.get_model_input()
    with jax.numpy_rank_promotion("allow"):
        adapted = qwix.apply_lora_to_model(model, rules, **inputs, rngs=nnx.Rngs(1))
    rng = np.random.default_rng(6)
    lora = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32) / 2,
        nnx.state(adapted, nnx.LoRAParam),
    )
    nnx.update(adapted, lora)

    parent = para.from_tree(nnx.state(adapted), alpha=2.0)
    found = names.to_hf(parent, name)
    para.save(found, tmp_path / "adapter", format="peft")

    assert len(found.adapters) == 7 * LAYERS
    got = torch_logits(through_peft(base, tmp_path / "adapter"))
    want = tunix_logits(adapted)
    assert np.abs(want - torch_logits(base)).max() > 1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
