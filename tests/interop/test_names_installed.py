"""Test adapters with names of an older transformers on the models of the installed one.

transformers saves a model under the names of its first checkpoints, and loads those by
its own conversion. NumPy adds the updates there, by the former names, in float64; the
outputs of the model that transformers then loads are the oracle of PEFT's with the
renamed adapter.
"""

import copy
import dataclasses
import json
import warnings
from collections.abc import Callable

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

import para_jax as para
from para_jax import cli, names
from tests.interop.on_peft import PREFIX

# PEFT looks for the keys of patterns among modules alone, and warns of parameters.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*keys did not match any targeted module:RuntimeWarning",
    "ignore:.*is_gradient_checkpointing:FutureWarning",
)
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
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
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
DINO = {
    **{x: y for x, y in IMAGE.items() if x != "intermediate_size"},
    "mlp_ratio": 2,
}
MOE = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
PIXELS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def causal(kind, **extra):
    config = getattr(transformers, f"{kind}Config")(**{**TEXT, **extra})
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def of_images(model, config, **sizes):
    config = getattr(transformers, f"{config}Config")(**(sizes or IMAGE))
    return getattr(transformers, model)(config)


def gemma3():
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT),
        vision_config=IMAGE,
        mm_tokens_per_image=4,
        image_token_index=30,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 1], "rope_theta": 1e4}
    sizes = {"depth": 1, "embed_dim": 8, "num_heads": 2, "hidden_size": 24}
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={**sizes, "patch_size": 4, "mlp_ratio": 2},
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def deepseek():
    ranks = {"q_lora_rank": 5, "kv_lora_rank": 4, "qk_nope_head_dim": 4}
    heads = {"num_key_value_heads": 4, "head_dim": 4, "qk_rope_head_dim": 4}
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 7}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    return causal(
        "DeepseekV3", **ranks, **heads, **experts, **groups, **MOE, v_head_dim=4
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and what its former names have before those that it is saved under.

    Attributes:
      model: Makes it.
      start: The level that transformers drops on loading and does not save.
      some: Modules of today that come from the former ones.
    """

    model: Callable[[], torch.nn.Module]
    some: tuple[str, ...]
    start: str = ""


LAYER = "model/layers/1"
EXPERTS = f"{LAYER}/mlp/experts"
FUSED = (f"{EXPERTS}/gate_up_proj", f"{EXPERTS}/down_proj", f"{LAYER}/mlp/gate/weight")
CASES = {
    "siglip": Case(
        lambda: of_images("SiglipVisionModel", "SiglipVision"),
        ("encoder/layers/1/self_attn/q_proj", "head/mlp/fc1"),
        start="vision_model.",
    ),
    "clip": Case(
        lambda: of_images("CLIPVisionModel", "CLIPVision"),
        ("encoder/layers/1/self_attn/q_proj",),
        start="vision_model.",
    ),
    "vit": Case(
        lambda: of_images("ViTForImageClassification", "ViT"),
        ("vit/layers/1/attention/q_proj", "vit/layers/1/mlp/fc2"),
    ),
    "dinov2": Case(
        lambda: of_images("Dinov2ForImageClassification", "Dinov2", **DINO),
        ("dinov2/encoder/layer/1/attention/o_proj",),
    ),
    # Its gate and up were one matrix.
    "dinov2, gated": Case(
        lambda: of_images("Dinov2Model", "Dinov2", **DINO, use_swiglu_ffn=True),
        ("encoder/layer/1/mlp/gate_proj", "encoder/layer/1/mlp/up_proj"),
    ),
    "gemma3": Case(
        gemma3,
        (
            "model/language_model/layers/1/self_attn/q_proj",
            "model/vision_tower/encoder/layers/1/self_attn/q_proj",
        ),
    ),
    "qwen2-vl": Case(
        qwen2_vl,
        ("model/language_model/layers/1/mlp/up_proj", "model/visual/blocks/0/attn/qkv"),
    ),
    "mixtral": Case(lambda: causal("Mixtral", num_local_experts=3, **MOE), FUSED),
    # PEFT would take its dense layer for experts.
    "qwen3-moe": Case(
        lambda: causal(
            "Qwen3Moe",
            num_experts=3,
            moe_intermediate_size=7,
            mlp_only_layers=[0],
            **MOE,
        ),
        (*FUSED, "model/layers/0/mlp/down_proj/weight"),
    ),
    "qwen2-moe": Case(
        lambda: causal(
            "Qwen2Moe",
            num_experts=3,
            moe_intermediate_size=7,
            shared_expert_intermediate_size=5,
            **MOE,
        ),
        (*FUSED, f"{LAYER}/mlp/shared_expert/up_proj/weight"),
    ),
    "phimoe": Case(
        lambda: causal("Phimoe", num_local_experts=3, **MOE),
        (*FUSED[:2], f"{LAYER}/mlp/router/weight"),
    ),
    "deepseek-v3": Case(deepseek, (*FUSED, f"{LAYER}/self_attn/kv_b_proj")),
}
every_case = pytest.mark.parametrize("name", CASES)


def outputs(model):
    kind = type(model.get_base_model() if hasattr(model, "peft_config") else model)
    with torch.no_grad():
        if kind is transformers.Gemma3ForConditionalGeneration:
            images = torch.cat([torch.full((2, 4), 30), TOKENS], dim=1)
            types = (images == 30).long()
            got = model(input_ids=images, pixel_values=PIXELS, token_type_ids=types)
            return got.logits.numpy()
        if kind.main_input_name == "input_ids":
            return model(input_ids=TOKENS).logits.numpy()
        return model(pixel_values=PIXELS)[0].numpy()


class Former:
    """A base, and an adapter of rank 2 and scale 1.5 under its former names.

    Attributes:
      base: The model, with random weights.
      folder: The adapter.
      model: The folder of the model with the updates, under the former names.
    """

    def __init__(self, name, folder, *, which=lambda name: True, **fields):
        torch.manual_seed(1)
        self.base = CASES[name].model().eval()
        with torch.no_grad():
            for x in self.base.parameters():
                x.normal_(0, 0.3)
        self.model, self.folder = folder / "base", folder / "former"
        self.base.save_pretrained(self.model)
        weights = safetensors.numpy.load_file(self.model / "model.safetensors")
        weights = {CASES[name].start + key: x for key, x in weights.items()}
        rng, tensors = np.random.default_rng(0), {}
        outside = ("embed", "lm_head", "classifier")
        for key, x in weights.items():
            module, _, last = key.rpartition(".")
            if last != "weight" or x.ndim != 2 or any(y in key for y in outside):
                continue
            if not which(module):
                continue
            a, b = (rng.normal(size=y) / 2 for y in [(2, x.shape[1]), (x.shape[0], 2)])
            a, b = a.astype(np.float32), b.astype(np.float32)
            update = 1.5 * b.astype(np.float64) @ a.astype(np.float64)
            weights[key] = (x + update).astype(np.float32)
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b
        safetensors.numpy.save_file(
            weights, self.model / "model.safetensors", {"format": "pt"}
        )
        self.folder.mkdir()
        safetensors.numpy.save_file(tensors, self.folder / "adapter_model.safetensors")
        last = {key.split(".lora_")[0].rpartition(".")[2] for key in tensors}
        config = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 3,
            "lora_dropout": 0.1,
            "target_modules": sorted(last),
            "auto_mapping": {"base_model_class": type(self.base).__name__},
        }
        (self.folder / "adapter_config.json").write_text(json.dumps(config | fields))

    def wanted(self):
        loaded = type(self.base).from_pretrained(
            self.model, experts_implementation="eager"
        )
        return outputs(loaded.eval())

    def on_peft(self, folder):
        model = peft.PeftModel.from_pretrained(copy.deepcopy(self.base), str(folder))
        return outputs(model.eval())


def close(got, want, base):
    moved = np.abs(want - base).max()
    assert moved > 0.05
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1, moved))


@every_case
def test_renamed_it_computes_what_the_merged_former_weights_do(name, tmp_path):
    former = Former(name, tmp_path)

    code = cli.main(
        [
            *("convert", str(former.folder), str(tmp_path / "new")),
            *("--model", str(former.model)),
        ]
    )

    assert not code
    got = para.load(tmp_path / "new")
    assert set(CASES[name].some) <= got.adapters.keys()
    close(former.on_peft(tmp_path / "new"), former.wanted(), outputs(former.base))


@every_case
def test_the_names_of_today_stay(name, tmp_path):
    former = Former(name, tmp_path)
    new = names.to_installed(para.load(former.folder), former.model)

    again = names.to_installed(new, former.model)

    assert again is new


@every_case
def test_a_child_is_named_after_it_was_renamed(name, tmp_path):
    former = Former(name, tmp_path)
    new = names.to_installed(para.load(former.folder), former.model)

    para.save(para.compress(new, para.Gamma(1.0)), tmp_path / "child")

    close(former.on_peft(tmp_path / "child"), former.wanted(), outputs(former.base))


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_peft_drops_the_former_names_with_a_warning(name, tmp_path):
    former = Former(name, tmp_path)

    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        got = former.on_peft(former.folder)

    np.testing.assert_array_equal(got, outputs(former.base))


def test_peft_drops_the_attention_of_dinov2_without_a_warning(tmp_path):
    whole = Former("dinov2", tmp_path / "whole")
    rest = Former("dinov2", tmp_path / "rest", which=lambda name: "mlp.fc" in name)
    state = safetensors.numpy.load_file(whole.folder / "adapter_model.safetensors")
    kept = {key: x for key, x in state.items() if "mlp.fc" in key}
    safetensors.numpy.save_file(kept, rest.folder / "adapter_model.safetensors")

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = whole.on_peft(whole.folder)

    assert not [x for x in said if "adapter" in str(x.message)]
    assert kept.keys() < state.keys()
    np.testing.assert_array_equal(got, rest.on_peft(rest.folder))
    assert np.abs(got - whole.wanted()).max() > 0.1


def test_the_config_file_does_as_well_as_its_folder(tmp_path):
    former = Former("siglip", tmp_path)
    parent = para.load(former.folder)

    got = names.to_installed(parent, former.model / "config.json")

    want = names.to_installed(parent, str(former.model))
    assert got.adapters.keys() == want.adapters.keys()


def test_a_task_decides_on_the_head_that_the_names_are_under(tmp_path):
    sizes = {x: y for x, y in IMAGE.items() if x not in ("image_size", "patch_size")}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(
        tmp_path / "base"
    )
    adapter = para.Adapter(a=np.ones((12, 2)), b=np.ones((2, 12)))
    path = "bert/encoder/layer/0/attention/self/query"
    tasks = {"SEQ_CLS": path, None: path.removeprefix("bert/")}
    for task, want in tasks.items():
        parent = para.Checkpoint(adapters={path: adapter}, config={"task_type": task})

        got = names.to_installed(parent, tmp_path / "base")

        assert got.adapters.keys() == {want}


def test_an_expert_without_an_adapter_is_zero(tmp_path):
    former = Former(
        "mixtral",
        tmp_path,
        which=lambda name: "experts" in name and ".1.w2" not in name,
    )

    new = names.to_installed(para.load(former.folder), former.model)

    para.save(new, tmp_path / "new")
    down = new.adapters[FUSED[1]]
    assert [bool(np.any(x)) for x in down.b] == [True, False, True]
    close(former.on_peft(tmp_path / "new"), former.wanted(), outputs(former.base))


def test_experts_of_several_ranks_and_scales_are_one_stack(tmp_path):
    former = Former("mixtral", tmp_path, which=lambda name: "experts" in name)
    parent = para.compress(para.load(former.folder), para.Gamma(0.6))
    assert len({x.rank for x in parent.adapters.values()}) > 1
    again = {
        path: dataclasses.replace(x, b=x.b / (i % 3 + 1), scale=i % 3 + 1.0)
        for i, (path, x) in enumerate(parent.adapters.items())
    }

    plain = names.to_installed(parent, former.model).adapters
    new = names.to_installed(dataclasses.replace(parent, adapters=again), former.model)

    for path, x in plain.items():
        got = new.adapters[path]
        np.testing.assert_allclose(
            got.scale * (got.a @ got.b), x.scale * (x.a @ x.b), atol=1e-5
        )


@pytest.mark.parametrize("profile", ["ragged", "padded"])
def test_a_child_without_some_experts_is_renamed(profile, tmp_path):
    former = Former("mixtral", tmp_path, which=lambda name: "experts" in name)
    parent = para.load(former.folder)
    layer = "model/layers/1/block_sparse_moe/experts"
    gone = {x: y for x, y in parent.adapters.items() if x.startswith(layer)}
    child = dataclasses.replace(
        parent,
        adapters={x: y for x, y in parent.adapters.items() if x not in gone},
        absent={x: (y.inputs, y.outputs) for x, y in gone.items()},
    )

    new = names.to_installed(child, former.model)

    para.save(new, tmp_path / "new", profile=profile)
    again = names.to_installed(new, former.model)
    assert again.absent == new.absent
    assert again.adapters.keys() == new.adapters.keys()
    weights = safetensors.numpy.load_file(former.model / "model.safetensors")
    plain = tmp_path / "plain"
    former.base.save_pretrained(plain)
    before = safetensors.numpy.load_file(plain / "model.safetensors")
    merged = {x: before[x] if "layers.1" in x else y for x, y in weights.items()}
    safetensors.numpy.save_file(
        merged, former.model / "model.safetensors", {"format": "pt"}
    )
    close(former.on_peft(tmp_path / "new"), former.wanted(), outputs(former.base))


def test_another_tensor_goes_by_the_name_of_its_module(tmp_path):
    former = Former("gemma3", tmp_path)
    extra = {
        f"{PREFIX}language_model.model.norm.weight": np.ones(24),
        f"{PREFIX}language_model.model.layers.0.mlp.up_proj.base_layer.weight": (
            np.ones((20, 24))
        ),
        f"{PREFIX}score.weight": np.ones((3, 24)),
    }
    parent = dataclasses.replace(para.load(former.folder), extra=extra)

    got = names.to_installed(parent, former.model)

    start = f"{PREFIX}model.language_model"
    assert list(got.extra) == [
        f"{start}.norm.weight",
        f"{start}.layers.0.mlp.up_proj.base_layer.weight",
        f"{PREFIX}score.weight",
    ]


def refused(parent, model, match):
    with pytest.raises(ValueError, match=match):
        names.to_installed(parent, model)


def test_a_model_without_such_a_module_is_an_error(tmp_path):
    former = Former("vit", tmp_path)
    parent = para.Checkpoint(
        adapters={"vit/encoder/layer/7/attention/attention/query": adapter(12, 12)}
    )

    refused(
        parent,
        former.model,
        r"layer/7.*ViTForImageClassification of transformers 5.*nearest is 'vit/layers",
    )


def adapter(m, n, *, dtype=np.float32):
    return para.Adapter(a=np.ones((m, 2), dtype), b=np.ones((2, n), dtype))


def test_a_module_of_another_shape_is_an_error(tmp_path):
    former = Former("vit", tmp_path)
    path = "vit/encoder/layer/1/attention/attention/query"

    refused(
        para.Checkpoint(adapters={path: adapter(12, 16)}),
        former.model,
        r"'vit/layers/1/attention/q_proj' .*takes.*\[12, 12\].*adapter's is \[12, 16\]",
    )


def test_experts_of_two_dtypes_are_an_error(tmp_path):
    former = Former("mixtral", tmp_path)
    start = "model/layers/0/block_sparse_moe/experts"
    down = {
        f"{start}/0/w2": adapter(20, 24),
        f"{start}/1/w2": adapter(20, 24, dtype=np.float16),
    }

    refused(
        para.Checkpoint(adapters=down), former.model, "float16 and float32.*one dtype"
    )


def test_the_bias_of_an_expert_is_an_error(tmp_path):
    former = Former("mixtral", tmp_path)
    path = "model/layers/0/block_sparse_moe/experts/0/w2"

    refused(
        para.Checkpoint(
            adapters={path: adapter(20, 24)}, biases={path: np.ones(24, np.float32)}
        ),
        former.model,
        r"w2' has a bias.*lora_bias",
    )


def test_an_expert_by_both_its_names_is_an_error(tmp_path):
    former = Former("vit", tmp_path)
    path = "vit/encoder/layer/1/attention/attention/query"
    both = {x: adapter(12, 12) for x in (path, "vit/layers/1/attention/q_proj")}

    refused(para.Checkpoint(adapters=both), former.model, "are both 'vit/layers/1")
