"""Test the names of newer families against the modules of transformers' own models.

Each model is built tiny from its configuration. Its layers' linear modules and experts
must be the names of one table, all of them and no others, in both directions and of
the shapes that PEFT gives them. Then PEFT adds the updates of kernels by JAX paths, and
its logits must be those of a base to which NumPy added them, in float64, as the JAX
library's own conversion places the kernel.
"""

import copy
import re

import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from para_jax import names

# PEFT looks for the keys of patterns among modules alone, and warns of parameters.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*keys did not match any targeted module:RuntimeWarning",
)
LAYERS, E = 6, 3
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "vocab_size": 31,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
MOE = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
GEMMA4 = {
    **TEXT,
    "global_head_dim": 8,
    "num_global_key_value_heads": 1,
    "vocab_size_per_layer_input": 31,
}
PER_LAYER = {"hidden_size_per_layer_input": 5}
SHARED = {"attention_k_eq_v": True, "hidden_size_per_layer_input": 0}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": E,
    "top_k_experts": 2,
    "moe_intermediate_size": 7,
    "experts_implementation": "eager",
}


def causal(kind, **extra):
    config = getattr(transformers, f"{kind}Config")(**{**TEXT, **extra})
    return transformers.AutoModelForCausalLM.from_config(config)


def gemma4(**extra):
    config = transformers.Gemma4TextConfig(**GEMMA4, **extra)
    return transformers.Gemma4ForCausalLM(config)


def gemma4_multimodal(*, tower, **extra):
    vision = {"use_clipped_linears": True, "head_dim": 6, "pooling_kernel_size": 1}
    config = transformers.Gemma4Config(
        text_config={**GEMMA4, **extra},
        vision_config={**IMAGE, **vision} if tower else None,
    )
    return transformers.Gemma4ForConditionalGeneration(config)


def deepseek():
    ranks = {"q_lora_rank": 5, "kv_lora_rank": 4, "qk_nope_head_dim": 4}
    heads = {"num_key_value_heads": 4, "head_dim": 4, "qk_rope_head_dim": 4}
    experts = {"n_routed_experts": E, "moe_intermediate_size": 7, "n_shared_experts": 1}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 3}
    return causal(
        "DeepseekV3", **ranks, **heads, **experts, **groups, **MOE, v_head_dim=4
    )


def gpt_oss():
    return causal("GptOss", num_local_experts=E, **MOE)


def qwen3_next():
    linear = {f"linear_{x}_head_dim": 4 for x in ("key", "value")}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    experts = {"num_experts": E, "moe_intermediate_size": 7}
    return causal(
        "Qwen3Next",
        **linear,
        **heads,
        **experts,
        **MOE,
        shared_expert_intermediate_size=5,
    )


LLAMA4 = {
    "num_local_experts": E,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 20,
    **MOE,
    "num_experts_per_tok": 1,
}


def llama4():
    config = transformers.Llama4TextConfig(**{**TEXT, "intermediate_size": 7}, **LLAMA4)
    return transformers.Llama4ForCausalLM(config)


def llama4_multimodal():
    vision = {**IMAGE, "vision_output_dim": 12, "projector_input_dim": 12}
    config = transformers.Llama4Config(
        text_config={**TEXT, "intermediate_size": 7, **LLAMA4},
        vision_config={**vision, "projector_output_dim": 12},
    )
    return transformers.Llama4ForConditionalGeneration(config)


def siglip2():
    text = {
        **{x: y for x, y in IMAGE.items() if x not in ("image_size", "patch_size")},
        "vocab_size": 31,
        "projection_size": 12,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {x: y for x, y in IMAGE.items() if x != "image_size"}
    config = transformers.Siglip2Config(
        text_config=text, vision_config={**vision, "num_patches": 4}
    )
    return transformers.Siglip2Model(config)


def dinov3(*, gated=True):
    config = transformers.DINOv3ViTConfig(**IMAGE, use_gated_mlp=gated)
    return transformers.DINOv3ViTModel(config)


# Of a model: the names of its tables that are the same there, and its construction.
MODELS = {
    "gemma4, small": ("gemma4", ("tunix", "maxtext"), lambda: gemma4(**PER_LAYER)),
    "gemma4, shared values": (
        "gemma4",
        ("tunix-shared-values",),
        lambda: gemma4(**SHARED),
    ),
    "gemma4, experts": (
        "gemma4",
        ("maxtext-moe",),
        lambda: gemma4(**SHARED, **EXPERTS),
    ),
    "gemma4 without images": (
        "gemma4-multimodal",
        ("tunix",),
        lambda: gemma4_multimodal(tower=False, **PER_LAYER),
    ),
    "gemma4 with images": (
        "gemma4-multimodal",
        ("maxtext",),
        lambda: gemma4_multimodal(tower=True, **PER_LAYER),
    ),
    "deepseek-v3": ("deepseek-v3", ("maxtext", "maxtext-scanned"), deepseek),
    "gpt-oss": ("gpt-oss", ("maxtext", "maxtext-scanned"), gpt_oss),
    "llama4": ("llama4", ("maxtext", "maxtext-scanned"), llama4),
    "llama4 with images": ("llama4-multimodal", ("maxtext",), llama4_multimodal),
    "qwen3-next": ("qwen3-next", ("maxtext",), qwen3_next),
    "siglip2": ("siglip2", ("big-vision", "big-vision-scanned"), siglip2),
    "dinov3": ("dinov3", ("bonsai",), dinov3),
    # The modules of Mistral, and its table.
    "ministral3": ("mistral", ("flax", "maxtext"), lambda: causal("Ministral3")),
}
CASES = [(name, x) for name, (_, several, _) in MODELS.items() for x in several]
every_case = pytest.mark.parametrize(("name", "ecosystem"), CASES)
# Modules outside of the layers, and what is no plain module of theirs.
OUTSIDE = re.compile(
    r".*lm_head|.*head(\..*)?|.*embed.*|.*projector.*|.*patch_.*"
    r"|vision_model\.(model|vision_adapter).*"  # Llama 4's, which no table has.
)


def random(m, n, *, stack=(), seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(*stack, m, 2)) / 2, rng.normal(size=(*stack, 2, n)) / 2
    return para.Adapter(a=a.astype(np.float32), b=b.astype(np.float32), scale=0.5)


def update(x):
    return x.scale * (np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64))


def whole(model):
    """Return adapters of a model's modules and experts, by transformers' names."""
    found = {
        name: random(x.in_features, x.out_features)
        for name, x in model.named_modules()
        if isinstance(x, torch.nn.Linear)
        # A router has a forward of its own, and returns more than an output.
        and type(x).forward is torch.nn.Linear.forward
        and not OUTSIDE.fullmatch(name)
    }
    for name, x in model.named_parameters():
        if x.ndim != 3 or "experts" not in name:
            continue
        # PEFT asks for this to tell the inputs of a parameter from its outputs.
        owner = model.get_submodule(name.rpartition(".")[0])
        experts, *both = x.shape
        m, n = both if getattr(owner, "is_transposed", False) else both[::-1]
        found[name] = random(m, n, stack=(experts,), seed=len(name))
    return {name.replace(".", "/"): x for name, x in found.items()}


@every_case
def test_every_module_has_one_name_both_ways(name, ecosystem):
    kind, _, build = MODELS[name]
    with torch.device("meta"):
        before = whole(build())
    facts = {"ecosystem": ecosystem, "head_dim": 6, "layers": LAYERS}

    there = names.from_hf(para.Checkpoint(adapters=before), kind, **facts)
    back = names.to_hf(there, kind, **facts).adapters

    stacks = {p: x.stack for p, x in before.items() if x.stack and p not in back}
    back = para.stack(back, stacks)
    assert back.keys() == before.keys()
    for path, x in before.items():
        assert (back[path].inputs, back[path].outputs) == (x.inputs, x.outputs)
        np.testing.assert_allclose(update(back[path]), update(x), atol=1e-6)
    halves = sum(np.prod(x.stack) for p, x in before.items() if "gate_up" in p)
    kernels = sum(x.modules for x in before.values()) + halves
    assert sum(x.modules for x in there.adapters.values()) == kernels


# A path, its module, and how the library's conversion places the update of a kernel
# `[..., in, out]` in the weight.
plain = np.transpose
LATENT = {"wq_a": "q_a_proj", "wq_b": "q_b_proj", "wkv_b": "kv_b_proj", "out": "o_proj"}


def turned(x):
    return x.swapaxes(-1, -2)


def taking_turns(gate, up):
    both = np.stack([gate, up], axis=-1)
    return both.reshape(*gate.shape[:-1], -1)


def side_by_side(gate, up):
    return np.concatenate([gate, up], axis=-1)


def one_after_the_other(gate, up):
    return np.concatenate([gate, up], axis=-1).swapaxes(-1, -2)


def experts(path, owner, *, e=E, both=one_after_the_other, down=turned):
    """Return gate, up and down of all experts at a path, and their two parameters."""
    d, f = TEXT["hidden_size"], 7
    gate, up = (random(d, f, stack=(e,), seed=x) for x in (3, 4))
    last = random(f, d, stack=(e,), seed=5)
    adapters = {f"{path}/wi_0": gate, f"{path}/wi_1": up, f"{path}/wo": last}
    return adapters, {
        f"{owner}.gate_up_proj": both(update(gate), update(up)),
        f"{owner}.down_proj": down(update(last)),
    }


def dense(paths, model):
    """Return adapters of plain kernels, and the updates of their modules."""
    adapters, places = {}, {}
    for seed, (path, module) in enumerate(paths.items()):
        n, m = model.get_submodule(module).weight.shape
        adapters[path] = random(m, n, seed=seed)
        places[f"{module}.weight"] = plain(update(adapters[path]))
    return adapters, places


def of_gpt_oss(model):
    layer = "decoder/layers_5"
    first = dense(
        {f"{layer}/GptOssAttention/out": "model.layers.5.self_attn.o_proj"}, model
    )
    f = model.config.intermediate_size
    assert f == 20
    gate, up = (random(24, f, stack=(E,), seed=x) for x in (3, 4))
    down = random(f, 24, stack=(E,), seed=5)
    block = f"{layer}/GptOssMlp"
    first[0].update({f"{block}/wi_0": gate, f"{block}/wi_1": up, f"{block}/wo": down})
    owner = "model.layers.5.mlp.experts"
    first[1][f"{owner}.gate_up_proj"] = taking_turns(update(gate), update(up))
    first[1][f"{owner}.down_proj"] = update(down)
    return first


def of_deepseek(model):
    adapters, places = {}, {}
    for path, i in (("dense_layers_2", 2), ("moe_layers_1", 4)):
        some = dense(
            {
                f"decoder/{path}/self_attention/{x}": f"model.layers.{i}.self_attn.{y}"
                for x, y in LATENT.items()
            },
            model,
        )
        adapters |= some[0]
        places |= some[1]
    block = "decoder/moe_layers_1/DeepSeekMoeBlock_0/MoeBlock_0"
    some = experts(block, "model.layers.4.mlp.experts")
    return adapters | some[0], places | some[1]


def of_qwen3_next(model):
    some = dense(
        {
            "decoder/layers_0/attention/in_proj_qkvz": (
                "model.layers.0.linear_attn.in_proj_qkvz"
            ),
            "decoder/layers_3/attention/attention/query": (
                "model.layers.3.self_attn.q_proj"
            ),
            "decoder/layers_3/mlp/shared_expert_gate": (
                "model.layers.3.mlp.shared_expert_gate"
            ),
        },
        model,
    )
    block = "decoder/layers_3/mlp/routed_experts"
    more = experts(block, "model.layers.3.mlp.experts")
    return some[0] | more[0], some[1] | more[1]


def of_gemma4(model):
    some = dense(
        {
            "decoder/layers_5/self_attention/key": "model.layers.5.self_attn.k_proj",
            "decoder/layers_0/self_attention/value": "model.layers.0.self_attn.v_proj",
            "decoder/layers_0/mlp/moe_block/shared_experts/wo": (
                "model.layers.0.mlp.down_proj"
            ),
        },
        model,
    )
    more = experts(
        "decoder/layers_0/mlp/moe_block/MoeBlock_0", "model.layers.0.experts"
    )
    return some[0] | more[0], some[1] | more[1]


def of_llama4(model):
    some = dense(
        {
            "decoder/layers_0/self_attention/query": "model.layers.0.self_attn.q_proj",
            "decoder/layers_0/mlp/wi_0": "model.layers.0.feed_forward.gate_proj",
            "decoder/layers_1/Llama4MoEBlock_0/shared_experts/wi_1": (
                "model.layers.1.feed_forward.shared_expert.up_proj"
            ),
        },
        model,
    )
    block = "decoder/layers_1/Llama4MoEBlock_0/MoeBlock_0"
    owner = "model.layers.1.feed_forward.experts"
    more = experts(block, owner, both=side_by_side, down=np.asarray)
    return some[0] | more[0], some[1] | more[1]


KERNELS = {
    "llama4": of_llama4,
    "gpt-oss": of_gpt_oss,
    "deepseek-v3": of_deepseek,
    "qwen3-next": of_qwen3_next,
    "gemma4, experts": of_gemma4,
}


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.numpy()


@pytest.mark.parametrize("name", KERNELS)
def test_peft_computes_what_the_updates_of_the_jax_kernels_do(name, tmp_path):
    kind, _, build = MODELS[name]
    torch.manual_seed(1)
    base = build().eval()
    with torch.no_grad():
        for x in base.parameters():
            x.normal_(0, 0.3)
    adapters, places = KERNELS[name](base)
    merged = copy.deepcopy(base)
    with torch.no_grad():
        for weight, x in places.items():
            merged.get_parameter(weight).add_(torch.from_numpy(x).float())

    found = names.to_hf(para.Checkpoint(adapters=adapters), kind)
    para.save(found, tmp_path / "adapter", format="peft")

    got = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
    got, want, before = logits(got.eval()), logits(merged), logits(base)
    moved = np.abs(want - before).max()
    assert moved > 0.05
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * moved)
