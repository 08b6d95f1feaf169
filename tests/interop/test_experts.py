"""Test LoRA on fused experts: files and outputs of PEFT's `target_parameters`.

The models are transformers' own, tiny and random. PEFT's deltas, truncated by NumPy,
are the oracle.
"""

import copy
import functools
import json

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

import para_jax as para

SIZES = {
    "vocab_size": 17,
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "max_position_embeddings": 16,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "experts_implementation": "eager",  # The others want rows of 16 bytes.
}


def mixtral():
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, num_local_experts=3)
    )


def qwen():
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            **SIZES, num_experts=3, moe_intermediate_size=7, mlp_only_layers=[]
        )
    )


def gpt_oss():
    """Build a model that stores its experts transposed and declares it."""
    return transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**SIZES, num_local_experts=3, sliding_window=8)
    )


BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES = {
    "both parameters": (qwen, {"target_parameters": BOTH, "target_modules": []}),
    "one parameter": (
        mixtral,
        {"target_parameters": ["experts.down_proj"], "target_modules": ["q_proj"]},
    ),
    "bare names": (
        gpt_oss,
        {
            "target_parameters": ["gate_up_proj", "down_proj"],
            "target_modules": ["q_proj", "v_proj"],
        },
    ),
    "patterns": (
        qwen,
        {
            "target_parameters": BOTH,
            "target_modules": ["o_proj"],
            "rank_pattern": {"experts.down_proj": 2, "layers.1.self_attn.o_proj": 4},
            "alpha_pattern": {r"layers\.0.*gate_up_proj": 7},
        },
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


# PEFT 0.21 looks for the keys of patterns among modules alone, and warns of those of
# parameters, although it applies them.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*keys did not match any targeted module:RuntimeWarning"
)


def tokens():
    return torch.tensor([[1, 4, 7, 10, 13], [2, 3, 0, 9, 16]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the base, PEFT's random adapter of it, and the adapter as read here."""

    @functools.cache
    def get(name):
        folder = tmp_path_factory.mktemp("parent")
        base, model = train(name, folder)
        return base, model, para.load(folder)

    return get


def train(name, folder):
    build, fields = CASES[name]
    torch.manual_seed(7)
    base = build().eval()
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 6, **fields})
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for key, x in model.named_parameters():
            if x.requires_grad:
                small = 1e-3 if "layers.0" in key and "base_layer" in key else 0.5
                x.copy_(small * torch.randn(x.shape))
    model.save_pretrained(folder)
    return base, model


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits.numpy()


def deltas(model):
    """Return PEFT's delta of each parameter, by our path, `[*stack, in, out]`."""
    result = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, peft.tuners.lora.LoraLayer):
            continue
        path = name.removeprefix("base_model.model.").replace(".base_layer", "")
        delta = layer.get_delta_weight("default").detach().double().numpy()
        if hasattr(layer, "parameter_name"):
            path += f".{layer.parameter_name}"
            if not getattr(layer.get_base_layer(), "is_transposed", False):
                delta = delta.swapaxes(1, 2)
        else:
            delta = delta.T
        result[path.replace(".", "/")] = delta
    return result


def of(adapter):
    return adapter.scale * adapter.a.astype(np.float64) @ adapter.b.astype(np.float64)


def with_deltas(base, found):
    """Return the base model with deltas `[in, out]` added to its parameters."""
    model = copy.deepcopy(base)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for path, delta in found.items():
            name = path.replace("/", ".")
            owner = model.get_submodule(name.rpartition(".")[0])
            if delta.ndim == 2:
                parameters[f"{name}.weight"] += torch.from_numpy(delta.T.copy())
            elif getattr(owner, "is_transposed", False):
                parameters[name] += torch.from_numpy(delta.copy())
            else:
                parameters[name] += torch.from_numpy(delta.swapaxes(1, 2).copy())
    return model


def load_in_peft(base, folder):
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    result = model.load_adapter(folder, adapter_name="default")
    assert not result.missing_keys
    assert not result.unexpected_keys
    return model


def truncated(found, ranks, count):
    """Return the deltas of the `count` largest components of the whole model."""
    parts = {path: np.linalg.svd(x, full_matrices=False) for path, x in found.items()}
    pool = np.concatenate([parts[path].S[..., : ranks[path]].ravel() for path in found])
    least = np.sort(pool)[-count]
    result = {}
    for path, (u, s, vt) in parts.items():
        s = np.where((s >= least) & (np.arange(s.shape[-1]) < ranks[path]), s, 0)
        result[path] = (u * s[..., None, :]) @ vt
    return result


@every_case
def test_every_update_is_the_one_that_peft_computes(name, trained):
    _, model, got = trained(name)

    want = deltas(model)
    assert got.adapters.keys() == want.keys()
    for path, delta in want.items():
        np.testing.assert_allclose(of(got.adapters[path]), delta, atol=1e-6)
        kind = got.layers.get(path, para.Layer()).kind
        assert (kind == "experts") == (delta.ndim == 3)


@every_case
def test_a_child_that_keeps_all_is_its_parent_to_peft(name, trained, tmp_path):
    base, model, parent = trained(name)
    child = para.compress(parent, para.Epsilon(1.0))

    para.save(child, tmp_path / "child")

    got = load_in_peft(base, tmp_path / "child")
    np.testing.assert_allclose(logits(got), logits(model), atol=2e-5)


WAYS = [
    ("ragged", "ragged"),
    ("ragged", "padded"),
    ("padded", "padded"),
    ("padded", "uniform-by-type"),
    ("ragged", "per-tensor-alpha"),
]


@pytest.mark.parametrize(("form", "profile"), WAYS)
@every_case
def test_a_child_is_the_truncation_of_what_peft_computes(
    name, form, profile, trained, tmp_path
):
    base, model, parent = trained(name)
    child = para.compress(parent, para.Gamma(0.25), form=form)

    para.save(child, tmp_path / "child", profile=profile)

    ranks = {path: x.rank for path, x in parent.adapters.items()}
    count = sum(x.modules * x.rank for x in parent.adapters.values()) // 4
    want = truncated(deltas(model), ranks, count)
    got = load_in_peft(base, tmp_path / "child")
    np.testing.assert_allclose(logits(got), logits(with_deltas(base, want)), atol=2e-5)
    again = para.load(tmp_path / "child")
    for path, delta in want.items():
        found = of(again.adapters[path]) if path in again.adapters else 0 * delta
        np.testing.assert_allclose(found, delta, atol=1e-5)


def test_a_parameter_that_keeps_nothing_is_no_target(trained, tmp_path):
    base, _, parent = trained("both parameters")
    para.save(para.compress(parent, para.Gamma(0.25)), tmp_path / "child")

    config = json.loads((tmp_path / "child/adapter_config.json").read_text())

    gone = "model.layers.0.mlp.experts.gate_up_proj"
    assert gone not in config["target_parameters"]
    assert len(config["target_parameters"]) == 3
    assert config["target_modules"] == []
    file = tmp_path / "child/adapter_model.safetensors"
    keys = safetensors.numpy.load_file(file).keys()
    assert not [key for key in keys if "layers.0" in key and "base_layer" in key]
    load_in_peft(base, tmp_path / "child")
