"""Build tiny random models and adapters, and compute their expected results.

Adapters are written tensor by tensor, without our code or PEFT's. The oracles are
transformers with PEFT, and transformers with `W + s B A` added by NumPy.
"""

import copy
import functools
import json
import pathlib
import re

import numpy as np
import peft
import safetensors.numpy
import torch
import transformers

# The products are tiny: with several threads, most time would be waiting.
torch.set_num_threads(1)

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# For families without a configured `head_dim`: llama.cpp derives it from these.
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
_EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", _HEADS),
    "qwen3": ("Qwen3", {}),
    # llama.cpp reads `head_dim` from this scalar; only the largest Gemma 3 differs.
    "gemma3": ("Gemma3Text", {"sliding_window": 64, "query_pre_attn_scalar": 32}),
    "phi3": ("Phi3", _HEADS),
    "mixtral": ("Mixtral", {"num_local_experts": 4} | _EXPERTS),
    "qwen3-moe": (
        "Qwen3Moe",
        {"num_experts": 4, "moe_intermediate_size": 32} | _EXPERTS,
    ),
}
CAUSAL = {"Gemma3Text": "Gemma3"}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
PROMPTS = [[1, 17, 230, 45, 301, 9, 88], [1, 5, 6, 120, 77, 210, 33, 64, 19]]
NEW = 16


def make(family: str, folder: pathlib.Path, **sizes: int) -> pathlib.Path:
    """Save a model of a family, with weights large enough to spread its logits."""
    name, more = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**SIZES | more | sizes)
    torch.manual_seed(11)
    kind = getattr(transformers, f"{CAUSAL.get(name, name)}ForCausalLM")
    model = kind(config).eval()
    with torch.no_grad():
        for path, x in model.named_parameters():
            if x.ndim > 1:
                embeds = "embed" in path and not config.tie_word_embeddings
                scale = 1.0 if embeds else 0.7 / x.shape[-1] ** 0.5
                x.copy_(scale * torch.randn(x.shape))
            elif "bias" in path:
                x.copy_(0.1 * torch.randn(x.shape))
        # The end token is never the best one: all engines generate equally many.
        model.get_output_embeddings().weight[config.eos_token_id] = 0
    model.save_pretrained(folder)
    return folder


def make_classifier(folder: pathlib.Path) -> pathlib.Path:
    """Save a Llama with a head of three classes."""
    config = transformers.LlamaConfig(**SIZES, num_labels=3)
    torch.manual_seed(11)
    model = transformers.LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        for path, x in model.named_parameters():
            if x.ndim > 1:
                scale = 1.0 if "embed" in path else 0.7 / x.shape[-1] ** 0.5
                x.copy_(scale * torch.randn(x.shape))
    model.save_pretrained(folder)
    return folder


def scored_with_peft(folder: pathlib.Path, child: pathlib.Path) -> np.ndarray:
    """Compute the scores of a classifier with an adapter, `[prompts, classes]`."""
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(base, child).eval()
    with torch.no_grad():
        found = [model(torch.tensor([ids])).logits[0] for ids in PROMPTS]
    return torch.stack(found).numpy()


@functools.cache
def load(folder: pathlib.Path) -> transformers.PreTrainedModel:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def linear_shapes(folder: pathlib.Path, targets: tuple[str, ...]) -> dict[str, tuple]:
    """Return outputs and inputs of the modules with names ending in `targets`."""
    found = {}
    for path, module in load(folder).named_modules():
        if path.endswith(targets) and hasattr(module, "weight"):
            found[path] = tuple(module.weight.shape)
    return found


def expert_shapes(folder: pathlib.Path) -> dict[str, tuple]:
    """Return the shapes of the experts under their file names, one module each."""
    config = load(folder).config
    wide, hidden = config.intermediate_size, config.hidden_size
    kind = config.model_type
    if kind == "qwen3_moe":
        wide = config.moe_intermediate_size
    owner = "block_sparse_moe.experts" if kind == "mixtral" else "mlp.experts"
    names = ("w1", "w2", "w3") if kind == "mixtral" else MLP
    found = {}
    for layer in range(config.num_hidden_layers):
        for expert in range(4):
            for name in names:
                path = f"model.layers.{layer}.{owner}.{expert}.{name}"
                down = name in ("w2", "down_proj")
                found[path] = (hidden, wide) if down else (wide, hidden)
    return found


def adapter(
    folder: pathlib.Path,
    shapes: dict[str, tuple],
    *,
    rank: int = 8,
    config: dict | None = None,
    ranks: dict[str, int] | None = None,
    seed: int = 3,
) -> pathlib.Path:
    """Write a PEFT folder of random factors, with different spectra in each module.

    Args:
      folder: The target folder.
      shapes: Outputs and inputs of each module. `embed_tokens` is treated as an
        embedding.
      rank: The rank of all modules except those in `ranks`.
      config: Overrides entries of adapter_config.json.
      ranks: By the last part of a module's name.
    """
    random, tensors = np.random.default_rng(seed), {}
    for path, (outputs, inputs) in shapes.items():
        r = (ranks or {}).get(path.rpartition(".")[2], rank)
        decay = random.uniform(0.4, 0.95) ** np.arange(r)
        strength = random.choice([0.3, 1.0, 1.6]) / rank**0.5
        a = random.normal(size=(r, inputs)) / inputs**0.5
        b = random.normal(size=(outputs, r)) * decay * strength
        ends = ("lora_A.weight", "lora_B.weight")
        if path.endswith("embed_tokens"):
            a, ends = a * inputs**0.5, ("lora_embedding_A", "lora_embedding_B")
            a, b = random.normal(size=(r, outputs)), random.normal(size=(inputs, r))
            b *= 0.1 * decay
        for end, x in zip(ends, (a, b), strict=True):
            tensors[f"base_model.model.{path}.{end}"] = x.astype(np.float32)
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({x.rpartition(".")[2] for x in shapes}),
    }
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    text = json.dumps(written | (config or {}))
    (folder / "adapter_config.json").write_text(text)
    return folder


def _computed(model) -> dict[str, np.ndarray]:
    """Return log-probabilities after each token, and the greedy tokens.

    `prompt`, `[tokens, vocabulary]`: after each token of the prompts, end to end.
    `steps`, `[prompts, NEW, vocabulary]`: the ones that chose the new tokens.
    """
    prompt, steps, tokens = [], [], []
    with torch.no_grad():
        for given in PROMPTS:
            ids = torch.tensor([given])
            for _ in range(NEW):
                best = model(ids).logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, best], 1)
            x = model(ids).logits[0].log_softmax(-1).numpy()
            prompt.append(x[: len(given)])
            steps.append(x[len(given) - 1 : -1])
            tokens.append(ids[0, len(given) :].numpy())
    return {
        "prompt": np.concatenate(prompt),
        "steps": np.stack(steps),
        "tokens": np.stack(tokens),
    }


def with_nothing(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return _computed(load(folder))


def with_peft(folder: pathlib.Path, child: pathlib.Path) -> dict[str, np.ndarray]:
    """Compute a model with an adapter by transformers and PEFT."""
    base = copy.deepcopy(load(folder))
    return _computed(peft.PeftModel.from_pretrained(base, child).eval())


def with_numpy(
    folder: pathlib.Path, child: pathlib.Path, *, rule: str = "pattern"
) -> dict[str, np.ndarray]:
    """Compute the same by `W + s B A`, for adapters that PEFT cannot load.

    Modules of single experts go into transformers' fused parameters.

    Args:
      folder: The model's.
      child: The adapter's.
      rule: The rule of scaling, see `updates`.
    """
    model = copy.deepcopy(load(folder))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for path, update in updates(child, rule=rule).items():
            x, rows = _place(parameters, path)
            x[rows] += torch.from_numpy(update.astype(np.float32))
    return _computed(model)


def updates(child: pathlib.Path, *, rule: str = "pattern") -> dict[str, np.ndarray]:
    """Return `s B A` of a PEFT folder's modules, in float64.

    Args:
      child: The folder.
      rule: `pattern`, as in PEFT: alphas and ranks by name; `tensor`: `lora_alpha`
        over the rank of each tensor itself; `global`: `lora_alpha / r`.
    """
    config = json.loads((child / "adapter_config.json").read_text())
    tensors = safetensors.numpy.load_file(child / "adapter_model.safetensors")
    found = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            b = tensors[key.replace(".lora_A.", ".lora_B.")].astype(np.float64)
        elif key.endswith(".lora_embedding_A"):
            a, b = tensors[key.replace("_A", "_B")].T, a.T.astype(np.float64)
        else:
            continue
        path = key.removeprefix("base_model.model.").partition(".lora_")[0]
        found[path] = _scale(config, path, b.shape[1], rule) * (b @ a)
    return found


def _scale(config: dict, path: str, rank: int, rule: str) -> float:
    alpha, under = config["lora_alpha"], config["r"]
    if rule != "pattern":
        return alpha / (rank if rule == "tensor" else under)
    alpha = _of_pattern(config.get("alpha_pattern"), path, alpha)
    under = _of_pattern(config.get("rank_pattern"), path, under)
    return alpha / (under**0.5 if config.get("use_rslora") else under)


def _of_pattern(pattern: dict | None, path: str, default: float) -> float:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def fused_shapes(folder: pathlib.Path) -> dict[str, tuple]:
    """Return the shapes of Qwen3-MoE's fused experts under PEFT's keys."""
    config = load(folder).config
    wide, hidden = config.moe_intermediate_size, config.hidden_size
    owners = [f"model.layers.{i}.mlp.experts" for i in range(config.num_hidden_layers)]
    shapes = {f"{x}.base_layer": (2 * wide, hidden) for x in owners}
    return shapes | dict.fromkeys(owners, (hidden, wide))


def fused_updates(child: pathlib.Path, experts: int) -> dict[str, np.ndarray]:
    """Return `updates` of a folder with fused experts, under the names of each expert.

    Row `e * r + i` of A belongs to component `i` of expert `e`, and column `i * E + e`
    of B: PEFT's `ParamWrapper.get_delta_weight`.
    """
    config = json.loads((child / "adapter_config.json").read_text())
    tensors = safetensors.numpy.load_file(child / "adapter_model.safetensors")
    found = {p: x for p, x in updates(child).items() if ".experts" not in p}
    for key, a in tensors.items():
        if ".experts" not in key or not key.endswith(".lora_A.weight"):
            continue
        b = tensors[key.replace(".lora_A.", ".lora_B.")].astype(np.float64)
        path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        owner = path.removesuffix(".base_layer")
        name = "down_proj" if path == owner else "gate_up_proj"
        rank = len(a) // experts
        scale = _scale(config, f"{owner}.{name}", rank, "pattern")
        for e in range(experts):
            update = scale * (b[:, e::experts] @ a[e * rank : (e + 1) * rank])
            halves = np.split(update, 2) if name == "gate_up_proj" else [update]
            names = MLP[:2] if name == "gate_up_proj" else MLP[2:]
            pairs = zip(names, halves, strict=True)
            found |= {f"{owner}.{e}.{x}": y for x, y in pairs}
    return found


_EXPERT = re.compile(r"(.*layers\.\d+)\.[a-z_]+\.experts\.(\d+)\.(\w+)")


def _place(parameters: dict, path: str) -> tuple[torch.Tensor, object]:
    """Return the target parameter of a module's update, and the index in it."""
    if not (match := _EXPERT.match(path)):
        return parameters[f"{path}.weight"], ...
    owner, expert, name = match[1], int(match[2]), match[3]
    if name in ("w2", "down_proj"):
        return parameters[f"{owner}.mlp.experts.down_proj"], expert
    x = parameters[f"{owner}.mlp.experts.gate_up_proj"]
    half = x.shape[1] // 2
    first = name in ("w1", "gate_proj")
    return x, (expert, slice(0, half) if first else slice(half, None))
