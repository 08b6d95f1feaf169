"""Test adapters on tied embeddings: PEFT loads a child as cut from its parent.

A tiny Llama; the deltas of PEFT's own model are the oracle, cut by NumPy in float64.
Each configuration is trained with PEFT's `ensure_weight_tying` and without it, on a
model that ties its output layer to its embedding and on one that does not.
"""

import copy
import functools
import itertools
import json
import math
import warnings

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from peft.tuners.lora import Embedding

import para_jax as para
from tests.interop.on_peft import loaded, lora_layers

# PEFT warns about tied modules, unmatched fields and an attribute of torch.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings:UserWarning",
    "ignore:gamma .* is less than one:UserWarning",
    "ignore:You have requested `ensure_weight_tying:UserWarning",
    "ignore:ensure_weight_tying=True but:UserWarning",
    "ignore:.*keys did not match any targeted module:RuntimeWarning",
    "ignore:Setting `save_embedding_layers`:UserWarning",
)

TARGETS = {
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "the output layer": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "full names": {
        "target_modules": ["model.embed_tokens", "model.layers.0.self_attn.q_proj"]
    },
    "an expression that ties nothing": {"target_modules": r".*\.(embed_tokens|q_proj)"},
    "an expression that ties": {"target_modules": r"(.*\.)?(embed_tokens|q_proj)"},
    "an expression for both": {"target_modules": r".*(embed_tokens|lm_head|q_proj)"},
    "a rank for the embedding alone": {
        "target_modules": ["embed_tokens", "q_proj"],
        "rank_pattern": {"embed_tokens": 2},
    },
    "an alpha for the output layer alone": {
        "target_modules": ["embed_tokens", "q_proj"],
        "alpha_pattern": {"lm_head": 3},
    },
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "trainable tokens": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [1, 4], "lm_head": [1, 4]},
    },
}
every_target = pytest.mark.parametrize("targets", TARGETS)
# The embedding's factors twice, and scales that agree.
SHARED = {
    "the embedding", "the output layer", "both", "full names",
    "an expression that ties", "an expression for both",
}  # fmt: skip


def llama(tie):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=19,
        hidden_size=8,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=tie,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    @functools.cache
    def get(targets, tie, ensure):
        config = peft.LoraConfig(
            r=4, lora_alpha=8, ensure_weight_tying=ensure, **TARGETS[targets]
        )
        model = peft.get_peft_model(llama(tie), config).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, x in model.named_parameters():
                if x.requires_grad:
                    x.copy_(0.3 * torch.randn(x.shape, generator=generator))
        folder = tmp_path_factory.mktemp("parent")
        model.save_pretrained(folder)
        return folder, model, para.load(folder)

    return get


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[1, 4, 7, 10], [2, 3, 0, 9]])).logits.numpy()


def deltas(model):
    """Return PEFT's delta of each module, `[inputs, outputs]`, in float64."""
    result = {}
    for name, layer in lora_layers(model).items():
        delta = layer.get_delta_weight("default").detach().double().numpy()
        result[name] = delta if isinstance(layer, Embedding) else delta.T
    return result


def cut(want, ranks, counted, budget):
    """Return the deltas of the largest components of the counted modules."""
    svds = {name: np.linalg.svd(want[name], full_matrices=False) for name in want}
    pool = sorted(
        (s for name in counted for s in svds[name].S[: ranks[name]]), reverse=True
    )
    least = pool[budget - 1] * (1 - 1e-5)
    return {
        name: (u[:, :k] * s[:k]) @ vt[:k]
        for name, (u, s, vt) in svds.items()
        for k in [int((s[: ranks[name]] >= least).sum())]
    }


@every_target
@pytest.mark.parametrize("ensure", [True, False])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.slow  # 44 parents of 16 budgets each: minutes.
def test_every_budget_is_what_was_cut(targets, tie, ensure, trained, tmp_path):
    _, model, parent = trained(targets, tie, ensure)
    want, ranks = deltas(model), {n: x.rank for n, x in dotted(parent.adapters).items()}
    both = tie and ensure and targets in SHARED
    counted = [name for name in want if not (both and name == "lm_head")]
    total = sum(ranks[name] for name in counted)
    profiles = itertools.cycle(["ragged", "padded", "per-tensor-alpha"])

    for sixteenth in range(1, 17):
        child = para.compress(parent, para.Gamma(sixteenth / 16))
        para.save(child, tmp_path / f"{sixteenth}", profile=next(profiles))

        assert child.report.total_rank == total
        got = deltas(loaded(llama(tie), tmp_path / f"{sixteenth}"))
        budget = max(1, math.floor(total * sixteenth / 16))
        for name, delta in cut(want, ranks, counted, budget).items():
            found = got.pop(name, np.zeros_like(delta))
            np.testing.assert_allclose(found, delta, atol=2e-5)
        assert not got


def dotted(adapters):
    return {path.replace("/", "."): x for path, x in adapters.items()}


@every_target
@pytest.mark.parametrize("profile", ["ragged", "padded", "per-tensor-alpha"])
def test_a_converted_adapter_is_its_parent(targets, profile, trained, tmp_path):
    _, model, parent = trained(targets, tie := True, True)

    para.save(parent, tmp_path / "x", profile=profile)

    got = loaded(llama(tie), tmp_path / "x")
    effect = np.abs(logits(model) - logits(llama(tie))).max()
    assert np.abs(logits(got) - logits(model)).max() < 1e-5 * effect
    config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    ties = targets in SHARED or targets == "modules_to_save"
    assert config["ensure_weight_tying"] == ties
    assert parent.shared == (
        {"lm_head": "model/embed_tokens"} if targets in SHARED else {}
    )


@pytest.mark.parametrize("budget", [0.2, 0.6])
def test_tied_factors_are_one_parameter_in_peft_again(budget, trained, tmp_path):
    _, _, parent = trained("both", tie := True, True)
    para.save(para.compress(parent, para.Gamma(budget)), tmp_path / "x")

    found = lora_layers(loaded(llama(tie), tmp_path / "x"))

    head, embed = found["lm_head"], found["model.embed_tokens"]
    one, two = head.lora_A["default"].weight, embed.lora_embedding_B["default"]
    assert one.data_ptr() == two.data_ptr()


class Halves(torch.nn.Module):
    """Register a block under two names, as in an encoder reused as a decoder."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.ModuleDict({"q": torch.nn.Linear(6, 6)})
        self.second = self.first
        self.out = torch.nn.Linear(6, 5)

    def forward(self, x):
        x = torch.tanh(self.first["q"](x))
        return self.out(torch.tanh(self.second["q"](x)))


@pytest.mark.parametrize("budget", range(1, 7))
@pytest.mark.parametrize("names", [1, 2])
def test_a_block_of_two_names_is_cut_once(names, budget, tmp_path):
    torch.manual_seed(3)
    base = Halves().eval()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q", "out"])
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for _, x in model.named_parameters():
            if x.requires_grad:
                x.copy_(0.5 * torch.randn(x.shape))
    model.save_pretrained(tmp_path / "parent")
    if names == 2:  # PEFT 0.21 writes the first; a whole state dict has both.
        file = tmp_path / "parent" / "adapter_model.safetensors"
        one = safetensors.torch.load_file(file)
        two = {key.replace("first", "second"): x.clone() for key, x in one.items()}
        safetensors.torch.save_file(one | two, file, metadata={"format": "pt"})
    parent = para.load(tmp_path / "parent")
    assert parent.shared == ({"second/q": "first/q"} if names == 2 else {})

    para.save(para.compress(parent, para.Rank(budget / 2)), tmp_path / "x")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # One name's rank matches nothing.
        got = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "x").eval()
    want = deltas(model)
    kept = cut(want, dict.fromkeys(want, 3), list(want), budget)
    with torch.no_grad():
        for name, delta in kept.items():
            base.get_submodule(name).weight += torch.from_numpy(delta.T).float()
        x = torch.randn(4, 6)
        np.testing.assert_allclose(got(x).numpy(), base(x).numpy(), atol=1e-5)
