"""Test adapters with JAX names on transformers models, through PEFT.

An update of a JAX kernel belongs in the PyTorch weight to which the JAX library's own
conversion maps the kernel: by its einsum, or for MaxText by its checkpoint conversion.
NumPy adds it there, and the logits must equal PEFT's.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from para_jax import names

D, F, N, K, H, V, E = 12, 20, 4, 2, 6, 31, 3
LAYERS = 2
TEXT = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": N,
    "num_key_value_heads": K,
    "head_dim": H,
    "vocab_size": V,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# For models without a separate head size.
PLAIN = {**TEXT, "hidden_size": N * H, "head_dim": H}
ENCODER = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
}
IMAGE = {**ENCODER, "image_size": 8, "patch_size": 4}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
PIXELS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def causal(kind, *, sizes=TEXT, **extra):
    config = getattr(transformers, f"{kind}Config")(**sizes, **extra)
    return transformers.AutoModelForCausalLM.from_config(config)


def gemma3_multimodal():
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT),
        vision_config=IMAGE,
        mm_tokens_per_image=4,
        image_token_index=30,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def siglip():
    text = {**ENCODER, "vocab_size": V, "projection_size": D, "pad_token_id": 0}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text, vision_config=IMAGE)
    )


def sequences(kind):
    config = getattr(transformers, f"{kind}Config")(**ENCODER, vocab_size=V)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


# The others want rows of 16 bytes.
EAGER = {"experts_implementation": "eager", "num_experts_per_tok": 2}
MODELS: Mapping[str, Callable[[], torch.nn.Module]] = {
    "llama3": lambda: causal("Llama"),
    "llama3.1": lambda: causal("Llama"),
    "mistral": lambda: causal("Mistral"),
    "qwen2.5": lambda: causal("Qwen2", sizes=PLAIN),
    "qwen3": lambda: causal("Qwen3"),
    "gemma2": lambda: causal("Gemma2"),
    "gemma3": lambda: causal("Gemma3Text"),
    "gemma3-multimodal": gemma3_multimodal,
    "mixtral": lambda: causal("Mixtral", num_local_experts=E, **EAGER),
    "qwen3-moe": lambda: causal(
        "Qwen3Moe", num_experts=E, moe_intermediate_size=F, **EAGER
    ),
    "bert": lambda: sequences("Bert"),
    "roberta": lambda: sequences("Roberta"),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**IMAGE)
    ),
    "siglip": siglip,
}


def logits(kind, model):
    with torch.no_grad():
        if kind == "vit":
            return model(pixel_values=PIXELS).logits.numpy()
        if kind == "siglip":
            got = model(input_ids=TOKENS, pixel_values=PIXELS)
            return np.stack([got.text_embeds.numpy(), got.image_embeds.numpy()])
        if kind == "gemma3-multimodal":
            images = torch.cat([torch.full((2, 4), 30), TOKENS], dim=1)
            types = (images == 30).long()
            return model(
                input_ids=images, pixel_values=PIXELS, token_type_ids=types
            ).logits.numpy()
        return model(input_ids=TOKENS).logits.numpy()


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Map a kernel of a JAX library to a module of transformers.

    Attributes:
      path: Its path in the layer, or the path of a stack.
      module: The module in the layer.
      shape: The kernel's axes, with those of the update's output last.
      order: Their order in the kernel, as an einsum.
      weight: The library's conversion of a kernel to `[out, in]`.
    """

    path: str
    module: str
    shape: tuple[int, ...]
    order: str = "io->io"
    weight: Callable[[np.ndarray], np.ndarray] = np.transpose


def heads_last(kernel):
    """Reshape `[D, N, H]` to `[N H, D]`."""
    return kernel.reshape(kernel.shape[0], -1).T


def heads_first(kernel):
    """Reshape `[N, D, H]` to `[N H, D]`."""
    return kernel.transpose(0, 2, 1).reshape(-1, kernel.shape[1])


def out(kernel):
    """Reshape `[N, H, D]` to `[D, N H]`."""
    return kernel.reshape(-1, kernel.shape[-1]).T


def halves(kernel):
    """Reorder as MaxText for Llama 3.1: the evens of each head, then its odds."""
    evens_and_odds = [kernel[..., ::2], kernel[..., 1::2]]
    return heads_last(np.concatenate(evens_and_odds, axis=-1))


def times_root(weight):
    """Scale as MaxText: the kernel holds the factor of the attention."""
    return lambda kernel: weight(kernel * np.sqrt(kernel.shape[-1]))


def attention(paths, *, d=D, query=heads_last, key=heads_last, order="dnh->dnh"):
    q, k, v, o = paths
    first = heads_first if order == "dnh->ndh" else None
    return [
        Kernel(q, "self_attn.q_proj", (d, N, H), order, first or query),
        Kernel(k, "self_attn.k_proj", (d, K, H), order, first or key),
        Kernel(v, "self_attn.v_proj", (d, K, H), order, first or heads_last),
        Kernel(o, "self_attn.o_proj", (N, H, d), "nhd->nhd", out),
    ]


def mlp(gate, up, down, *, d=D):
    return [
        Kernel(gate, "mlp.gate_proj", (d, F)),
        Kernel(up, "mlp.up_proj", (d, F)),
        Kernel(down, "mlp.down_proj", (F, d)),
    ]


def same(*modules, d=D):
    """Map Flax classes with Hugging Face's names."""
    return [
        Kernel(x.replace(".", "/"), x, (d, F) if x == modules[-2] else (F, d))
        if x in modules[-2:]
        else Kernel(x.replace(".", "/"), x, (d, d))
        for x in modules
    ]


PROJ = [f"attn/{x}_proj" for x in "qkvo"]
EINSUMS = [
    *("attn/q_einsum", "attn/kv_einsum/k", "attn/kv_einsum/v"),
    "attn/attn_vec_einsum",
]
MAXTEXT = [f"self_attention/{x}" for x in ("query", "key", "value", "out")]
WI = ("mlp/wi_0", "mlp/wi_1", "mlp/wo")
GATED = ("mlp/gate_proj", "mlp/up_proj", "mlp/down_proj")
SCALED = {"query": times_root(heads_last)}
TURNED = {"query": times_root(halves), "key": halves}
FLAX = [
    *attention([f"self_attn/{x}_proj" for x in "qkvo"]),
    *mlp(*GATED),
]
TUNIX = [*attention(PROJ), *mlp(*GATED)]
TUNIX_GEMMA = [*attention(EINSUMS, order="dnh->ndh"), *mlp(*GATED)]
GATING = ("mlp/gating_einsum/gate", "mlp/gating_einsum/up", "mlp/linear")
GEMMA = [*attention(EINSUMS, order="dnh->ndh"), *mlp(*GATING)]
BERT = same(
    *(f"attention.self.{x}" for x in ("query", "key", "value")),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)


def vit(places, *, out_proj, dense="MlpBlock_0"):
    """Return Linen's attention of 2 heads, and two Dense."""
    mha = "MultiHeadDotProductAttention_0"
    h = D // 2
    return [
        Kernel(f"{mha}/query", f"{places}.q_proj", (D, 2, h), "dnh->dnh", heads_last),
        Kernel(f"{mha}/key", f"{places}.k_proj", (D, 2, h), "dnh->dnh", heads_last),
        Kernel(f"{mha}/value", f"{places}.v_proj", (D, 2, h), "dnh->dnh", heads_last),
        Kernel(f"{mha}/out", f"{places}.{out_proj}", (2, h, D), "nhd->nhd", out),
        Kernel(f"{dense}/Dense_0", "mlp.fc1", (D, F)),
        Kernel(f"{dense}/Dense_1", "mlp.fc2", (F, D)),
    ]


SIGLIP = vit("self_attn", out_proj="out_proj")
TUNIX_SIGLIP = [
    *(
        Kernel(f"attn/{name}_proj", f"self_attn.{x}_proj", (D, D))
        for name, x in [("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")]
    ),
    Kernel("mlp/fc1", "mlp.fc1", (D, F)),
    Kernel("mlp/fc2", "mlp.fc2", (F, D)),
]
LANGUAGE = "model.language_model.layers.{i}"
TOWER = "model.vision_tower.encoder.layers.{i}"
ENCODED = "vision_encoder/siglip_encoder"
MODEL = "model.layers.{i}"
# The parts of each case: a layer's path, its name, its kernels.
CASES = {
    ("llama3", "flax"): [("model/layers/{i}", MODEL, FLAX)],
    ("llama3", "tunix"): [("layers/{i}", MODEL, TUNIX)],
    ("llama3.1", "maxtext"): [
        ("decoder/layers_{i}", MODEL, [*attention(MAXTEXT, **TURNED), *mlp(*WI)])
    ],
    ("llama3.1", "maxtext-scanned"): [
        ("decoder/layers/*", MODEL, [*attention(MAXTEXT, **TURNED), *mlp(*WI)])
    ],
    ("mistral", "maxtext-scanned"): [
        ("decoder/layers/*", MODEL, [*attention(MAXTEXT, **SCALED), *mlp(*WI)])
    ],
    ("qwen2.5", "tunix"): [
        ("layers/{i}", MODEL, [*attention(PROJ, d=N * H), *mlp(*GATED, d=N * H)])
    ],
    ("qwen3", "maxtext"): [
        ("decoder/layers_{i}", MODEL, [*attention(MAXTEXT), *mlp(*WI)])
    ],
    ("gemma2", "tunix"): [("layers/{i}", MODEL, TUNIX_GEMMA)],
    ("gemma2", "gemma"): [("layer_{i}", MODEL, GEMMA)],
    ("gemma3", "gemma"): [("layer_{i}", MODEL, GEMMA)],
    ("gemma3-multimodal", "tunix"): [
        ("layers/{i}", LANGUAGE, TUNIX_GEMMA),
        (f"{ENCODED}/transformer/blocks/{{i}}", TOWER, TUNIX_SIGLIP),
    ],
    ("gemma3-multimodal", "gemma"): [
        ("layer_{i}", LANGUAGE, GEMMA),
        (f"{ENCODED}/Transformer/encoderblock_{{i}}", TOWER, SIGLIP),
    ],
    ("bert", "flax"): [
        ("bert/encoder/layer/{i}", "bert.encoder.layer.{i}", BERT),
    ],
    ("roberta", "flax"): [
        ("roberta/encoder/layer/{i}", "roberta.encoder.layer.{i}", BERT),
    ],
    ("vit", "big-vision"): [
        (
            "Transformer/encoderblock_{i}",
            "vit.layers.{i}",
            vit("attention", out_proj="o_proj"),
        ),
    ],
    ("siglip", "big-vision-scanned"): [
        (
            "img/Transformer/encoderblock/*",
            "vision_model.encoder.layers.{i}",
            SIGLIP,
        ),
        (
            "txt/Encoder_0/encoderblock/*",
            "text_model.encoder.layers.{i}",
            SIGLIP,
        ),
    ],
}


def model_of(kind):
    torch.manual_seed(len(kind))
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for x in model.parameters():
            x.normal_(0, 0.3)
    return model


def factors(rng, inputs, outputs, *, stack=(), rank=2):
    a, b = (
        rng.normal(size=(*stack, *shape)).astype(np.float32) / 2
        for shape in ((inputs, rank), (rank, outputs))
    )
    return para.Adapter(a=a, b=b, scale=0.5)


def update(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * (a @ b)


def adapted(parts):
    """Return adapters by JAX path, and the effect of each on its weight by module."""
    rng = np.random.default_rng(5)
    adapters, places = {}, {}
    for path, name, kernels in parts:
        for kernel in kernels:
            split = -1 if kernel.weight in (out, np.transpose) else 1
            m, n = np.prod(kernel.shape[:split]), np.prod(kernel.shape[split:])
            stacked = path.endswith("*")
            every = [factors(rng, int(m), int(n)) for _ in range(LAYERS)]
            for i, x in enumerate(every):
                delta = update(x).reshape(kernel.shape)
                lies = kernel.weight(np.einsum(kernel.order, delta))
                places[f"{name}.{kernel.module}".replace("{i}", str(i))] = lies
                if not stacked:
                    adapters[f"{path}/{kernel.path}".replace("{i}", str(i))] = x
            if stacked:
                adapters[f"{path[:-2]}/{kernel.path}"] = para.Adapter(
                    a=np.stack([x.a for x in every]),
                    b=np.stack([x.b for x in every]),
                    scale=0.5,
                )
    return para.Checkpoint(adapters=adapters), places


def merged(base, places):
    model = copy.deepcopy(base)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, weight in places.items():
            modules[name].weight += torch.tensor(weight, dtype=torch.float32)
    return model


def through_peft(base, checkpoint, folder):
    para.save(checkpoint, folder, format="peft")
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


def close(got, want, base):
    moved = np.abs(want - base).max()
    assert moved > 0.01 * np.abs(base).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * moved)


@pytest.mark.parametrize(("kind", "ecosystem"), CASES)
def test_peft_computes_what_the_update_of_the_jax_kernel_does(
    kind, ecosystem, tmp_path
):
    base = model_of(kind)
    checkpoint, places = adapted(CASES[kind, ecosystem])

    found = names.to_hf(checkpoint, kind, ecosystem=ecosystem, head_dim=H)

    assert {x.replace("/", ".") for x in found.adapters} == places.keys()
    assert places.keys() <= dict(base.named_modules()).keys()
    got = logits(kind, through_peft(base, found, tmp_path / "adapter"))
    close(got, logits(kind, merged(base, places)), logits(kind, base))


@pytest.mark.parametrize(("kind", "ecosystem"), CASES)
def test_the_paths_tell_the_ecosystem(kind, ecosystem):
    checkpoint, places = adapted(CASES[kind, ecosystem])

    found = names.to_hf(checkpoint, kind, head_dim=H)

    assert {x.replace("/", ".") for x in found.adapters} == places.keys()
