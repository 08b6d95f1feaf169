"""Tests of mlx-lm's outputs on CPU, with adapters that we write and read.

Measured with mlx-lm 0.32.2 and mlx 0.32.4 (mlx-cpu), transformers 5.24.0 and PEFT
0.21.2. The oracle is the model with the updates merged into its weights by NumPy in
float64, and PEFT's own logits for adapters converted between the two.
"""

import json

import numpy as np
import pytest
import safetensors.numpy

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")
pytest.importorskip("torch")
pytest.importorskip("peft")

import peft  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from mlx_lm.models import llama, qwen3_moe  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters  # noqa: E402

import para_jax as para  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}
TOKENS = np.random.default_rng(3).integers(0, 61, size=(2, 13))


def torch_llama(*, tied):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config).eval()


def mlx_llama(*, tied=False):
    """Build mlx-lm's model, with the weights of `torch_llama`."""
    model = llama.Model(
        llama.ModelArgs(model_type="llama", tie_word_embeddings=tied, **SIZES)
    )
    found = torch_llama(tied=tied).state_dict()
    weights = [(name, mx.array(x.numpy())) for name, x in found.items()]
    model.load_weights([x for x in weights if not (tied and x[0] == "lm_head.weight")])
    return model


def mlx_moe():
    mx.random.seed(0)
    args = qwen3_moe.ModelArgs(
        model_type="qwen3_moe",
        num_experts=5,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        moe_intermediate_size=12,
        head_dim=8,
        rope_theta=1e4,
        tie_word_embeddings=False,
        norm_topk_prob=True,
        **SIZES,
    )
    return qwen3_moe.Model(args)


def logits(model):
    model.eval()  # A new model starts with dropout on.
    return np.asarray(model(mx.array(TOKENS)), np.float64)


def effect(got, base):
    return np.abs(got - base).max()


def trained(folder, model, config, *, num_layers, seed=0):
    """Write mlx-lm's files after training: LoRA layers with nonzero factors."""
    model.freeze()
    linear_to_lora_layers(model, num_layers, config)
    random = np.random.default_rng(seed)
    tensors = {
        name: mx.array(0.2 * random.normal(size=x.shape).astype(np.float32))
        for name, x in tree_flatten(model.trainable_parameters())
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    words = {"fine_tune_type": "lora", "num_layers": num_layers, "iters": 600}
    words |= {"adapter_path": str(folder), "lora_parameters": config}
    (folder / "adapter_config.json").write_text(json.dumps(words))
    return folder


def merged(model, updates):
    """Add updates `[in, out]` by dotted name to the model's weights, with NumPy."""
    params = dict(tree_flatten(model.parameters()))
    for name, delta in updates.items():
        weight = np.asarray(params[f"{name}.weight"], np.float64)
        # The rows of an embedding are its inputs.
        new = weight + (delta if name.endswith("embed_tokens") else delta.mT)
        model.load_weights(
            [(f"{name}.weight", mx.array(new.astype(np.float32)))], strict=False
        )
    return model


def updates(adapters):
    """Return the updates of the adapters for mlx-lm, including stacks."""
    return {
        path.replace("/", "."): x.scale
        * (np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64))
        for path, x in adapters.items()
    }


def torch_logits(folder, *, tied=False):
    model = peft.PeftModel.from_pretrained(torch_llama(tied=tied), str(folder))
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.double().numpy()


def peft_parent(folder, *, targets, **fields):
    config = peft.LoraConfig(r=6, lora_alpha=9, target_modules=targets, **fields)
    model = peft.get_peft_model(torch_llama(tied=False), config)
    torch.manual_seed(1)
    for name, x in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(x, std=0.2)
    model.save_pretrained(folder)
    return folder


LINEAR = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]
PARENTS = {
    "plain": {"targets": LINEAR},
    "rslora": {"targets": LINEAR, "use_rslora": True},
    "patterns": {
        "targets": LINEAR,
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"o_proj": 2},
    },
    "head": {"targets": [*LINEAR, "lm_head"]},
    "one layer": {"targets": ["q_proj"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize("gamma", [1.0, 0.4, 0.1])
@pytest.mark.parametrize("name", PARENTS)
def test_a_child_of_peft_gives_the_logits_of_peft(name, gamma, tmp_path):
    peft_parent(tmp_path / "parent", **PARENTS[name])
    # PEFT stores the base weights of an adapted head beside its factors.
    parent = para.load(tmp_path / "parent", adapters_only=True)
    child = para.compress(parent, para.Gamma(gamma))
    para.save(child, tmp_path / "peft")
    para.save(child, tmp_path / "format", format="mlx")
    para.save(child, tmp_path / "engine", engine="mlx")

    want = torch_logits(tmp_path / "peft")
    base = logits(mlx_llama())
    for form in ("format", "engine"):
        got = logits(load_adapters(mlx_llama(), str(tmp_path / form)))
        assert effect(got, want) < 3e-5
        assert effect(got, base) > 1e-3


CONFIGS = {
    "all keys": ({"rank": 5, "scale": 20.0, "dropout": 0.0}, 2),
    "keys": (
        {"rank": 5, "scale": 2.0, "dropout": 0.1, "keys": ["self_attn.q_proj"]},
        3,
    ),
    "all layers": (
        {"rank": 2, "scale": 0.5, "dropout": 0.0, "keys": ["mlp.up_proj"]},
        -1,
    ),
    "head and table": (
        {
            "rank": 4,
            "scale": 3.0,
            "dropout": 0.0,
            "keys": ["mlp.up_proj", "lm_head", "model.embed_tokens"],
        },
        1,
    ),
}


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_child_of_mlx_is_what_was_cut(name, gamma, tmp_path):
    config, num_layers = CONFIGS[name]
    trained(tmp_path / "parent", mlx_llama(), config, num_layers=num_layers)
    parent = logits(load_adapters(mlx_llama(), str(tmp_path / "parent")))
    read = para.load(tmp_path / "parent")

    np.testing.assert_allclose(
        logits(merged(mlx_llama(), updates(read.adapters))), parent, atol=1e-4
    )
    child = para.compress(read, para.Gamma(gamma))
    para.save(child, tmp_path / "child", format="mlx")

    got = logits(load_adapters(mlx_llama(), str(tmp_path / "child")))
    want = logits(merged(mlx_llama(), updates(child.adapters)))
    np.testing.assert_allclose(got, want, atol=1e-4)
    if gamma == 1:
        np.testing.assert_allclose(got, parent, atol=1e-4)
    words = json.loads((tmp_path / "child/adapter_config.json").read_text())
    assert words["num_layers"] == num_layers
    assert (words["iters"], "adapter_path" in words) == (600, False)
    assert words["lora_parameters"]["dropout"] == config["dropout"]


@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_the_experts_of_a_mixture_are_stacks(gamma, tmp_path):
    config = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    trained(tmp_path / "parent", mlx_moe(), config, num_layers=2)
    parent = logits(load_adapters(mlx_moe(), str(tmp_path / "parent")))
    read = para.load(tmp_path / "parent")
    stack = "model/layers/3/mlp/switch_mlp/down_proj"
    assert read.adapters[stack].a.shape == (5, 12, 4)
    np.testing.assert_allclose(
        logits(merged(mlx_moe(), updates(read.adapters))), parent, atol=1e-4
    )

    child = para.compress(read, para.Gamma(gamma))
    para.save(child, tmp_path / "child", format="mlx")

    got = logits(load_adapters(mlx_moe(), str(tmp_path / "child")))
    again = para.load(tmp_path / "child")
    np.testing.assert_allclose(
        logits(merged(mlx_moe(), updates(again.adapters))), got, atol=1e-4
    )
    for path, x in para.unstack(again.adapters).items():
        want = child.adapters.get(path)
        want = 0 if want is None else np.asarray(want.a) @ np.asarray(want.b)
        np.testing.assert_allclose(x.scale * x.a @ x.b, want, atol=1e-6)


def test_an_adapter_of_mlx_becomes_one_of_peft(tmp_path):
    config = {"rank": 5, "scale": 3.0, "dropout": 0.0}
    config |= {"keys": ["self_attn.q_proj", "mlp.down_proj", "lm_head"]}
    trained(tmp_path / "parent", mlx_llama(), config, num_layers=3)

    para.save(para.load(tmp_path / "parent"), tmp_path / "peft")

    want = logits(load_adapters(mlx_llama(), str(tmp_path / "parent")))
    assert effect(torch_logits(tmp_path / "peft"), want) < 3e-5
    assert effect(want, logits(mlx_llama())) > 1e-2


def test_a_tied_table_is_warned_of_when_it_crosses_over(tmp_path):
    config = {"rank": 4, "scale": 1.0, "dropout": 0.0, "keys": ["model.embed_tokens"]}
    trained(tmp_path / "parent", mlx_llama(tied=True), config, num_layers=1)

    with pytest.warns(UserWarning, match=r"embed_tokens.*tied"):
        para.save(para.load(tmp_path / "parent"), tmp_path / "peft")

    want = logits(load_adapters(mlx_llama(tied=True), str(tmp_path / "parent")))
    # PEFT applies the update to the lookup only, mlx-lm to the head too.
    assert effect(torch_logits(tmp_path / "peft", tied=True), want) > 1e-2


def test_what_we_say_of_mlx_lm_is_so(tmp_path):
    """Check our claims: one rank for all, no other tensors, float8 read as integers."""
    peft_parent(tmp_path / "parent", targets=["q_proj"])
    para.save(para.load(tmp_path / "parent"), tmp_path / "child", format="mlx")
    file = tmp_path / "child/adapters.safetensors"
    found = safetensors.numpy.load_file(file)
    name = "model.layers.2.self_attn.q_proj"

    less = found | {f"{name}.lora_a": found[f"{name}.lora_a"][:, :3].copy()}
    safetensors.numpy.save_file(less, file)
    with pytest.raises(ValueError, match="does not match"):
        load_adapters(mlx_llama(), str(tmp_path / "child"))
    safetensors.numpy.save_file(found | {"score.weight": np.ones(3)}, file)
    with pytest.raises((ValueError, RuntimeError)):
        load_adapters(mlx_llama(), str(tmp_path / "child"))
    safetensors.torch.save_file(
        {"x": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "f8.safetensors"
    )
    assert mx.load(str(tmp_path / "f8.safetensors"))["x"].dtype == mx.uint8
