"""Test experts of one module each, from PEFT before transformers 5, in PEFT today.

transformers 5 has one parameter for the experts of a layer, and PEFT stacks their
factors on loading. Parents are made by hand; base weights plus NumPy's deltas, float64,
are the oracle. Models are transformers' own, tiny and random.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers
from transformers import conversion_mapping
from transformers.core_model_loading import MergeModulelist, WeightConverter

import para_jax as para
from para_jax._engines import experts as expert_modules
from tests.interop.on_peft import PREFIX

# PEFT looks for the keys of patterns among modules alone, and warns of parameters.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*keys did not match any targeted module:RuntimeWarning",
    "ignore:.*one module for each expert",
    "ignore:Found missing adapter keys:UserWarning",
)
SIZES = {
    "vocab_size": 17,
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "experts_implementation": "eager",  # The others want rows of 16 bytes.
}


def mixtral():
    config = transformers.MixtralConfig(**SIZES, head_dim=6, num_local_experts=3)
    return transformers.MixtralForCausalLM(config)


def qwen3(dense=()):
    config = transformers.Qwen3MoeConfig(
        **SIZES,
        head_dim=6,
        num_experts=3,
        moe_intermediate_size=7,
        mlp_only_layers=list(dense),
    )
    return transformers.Qwen3MoeForCausalLM(config)


def olmoe():
    config = transformers.OlmoeConfig(**SIZES, num_experts=3)
    return transformers.OlmoeForCausalLM(config)


def qwen2():
    config = transformers.Qwen2MoeConfig(
        **SIZES,
        num_experts=3,
        moe_intermediate_size=7,
        shared_expert_intermediate_size=5,
        mlp_only_layers=[],
    )
    return transformers.Qwen2MoeForCausalLM(config)


@dataclasses.dataclass(frozen=True)
class Family:
    model: Callable[[], torch.nn.Module]
    moe: str = "mlp"
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")


FAMILIES = {
    "mixtral": Family(mixtral, "block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3": Family(qwen3),
    "olmoe": Family(olmoe),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


class Parent:
    """An adapter of rank 2 and scale 2 on attention and on every expert."""

    def __init__(self, family, folder, *, parts=(0, 1, 2), router=False):
        torch.manual_seed(0)
        self.base, self.family = family.model().eval(), family
        self.rng, self.tensors, self.deltas = np.random.default_rng(1), {}, {}
        for i, layer in enumerate(self.base.model.layers):
            self.add(f"model.layers.{i}.self_attn.q_proj", 12, 12)
            if not hasattr(layer.mlp, "experts"):
                for name in family.names:
                    shape = getattr(layer.mlp, name).weight.shape
                    self.add(f"model.layers.{i}.mlp.{name}", *shape)
                continue
            wide = layer.mlp.experts.down_proj.shape[2]
            start = f"model.layers.{i}.{family.moe}"
            for e in range(3):
                for part in parts:
                    shape = (wide, 12) if part < 2 else (12, wide)
                    name = f"{start}.experts.{e}.{family.names[part]}"
                    self.add(name, *shape)
            if router:
                self.add(f"{start}.gate", 3, 12)
        folder.mkdir()
        self.folder = folder
        safetensors.numpy.save_file(
            self.tensors, folder / "adapter_model.safetensors", {"format": "pt"}
        )
        targets = sorted({name.rpartition(".")[2] for name in self.deltas})
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": None}
        (folder / "adapter_config.json").write_text(
            json.dumps(config | {"target_modules": targets})
        )

    def add(self, name, outputs, inputs):
        size = 0.3 + 0.4 * self.rng.random()
        a, b = (size * self.rng.normal(size=x) for x in [(2, inputs), (outputs, 2)])
        a, b = a.astype(np.float32), b.astype(np.float32)
        self.tensors |= {
            f"{PREFIX}{name}.lora_A.weight": a,
            f"{PREFIX}{name}.lora_B.weight": b,
        }
        self.deltas[name] = 2 * b.astype(np.float64) @ a

    def cut(self, count):
        """Return the base with the `count` largest components of all deltas."""
        svds = {
            n: np.linalg.svd(x, full_matrices=False) for n, x in self.deltas.items()
        }
        pool = sorted((s for x in svds.values() for s in x.S), reverse=True)
        model = copy.deepcopy(self.base)
        with torch.no_grad():
            for name, (u, s, vt) in svds.items():
                kept = (u * np.where(s >= pool[count - 1] * (1 - 1e-6), s, 0)) @ vt
                self.weight(model, name).add_(torch.from_numpy(kept).float())
        return model

    def weight(self, model, name):
        if ".experts." not in name:
            return model.get_parameter(name.replace(self.family.moe, "mlp") + ".weight")
        _, _, layer, *_, e, projection = name.split(".")
        experts, part = model.model.layers[int(layer)].mlp.experts, projection
        half = experts.down_proj.shape[2]
        if part == self.family.names[2]:
            return experts.down_proj[int(e)]
        both = experts.gate_up_proj[int(e)]
        return both[:half] if part == self.family.names[0] else both[half:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    @functools.cache
    def get(family, parts=(0, 1, 2), router=False):
        folder = tmp_path_factory.mktemp("parents") / "parent"
        return Parent(FAMILIES[family], folder, parts=parts, router=router)

    return get


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[1, 4, 7, 10], [2, 3, 0, 9]])).logits.numpy()


def loaded(parent, folder):
    model = peft.PeftModel.from_pretrained(copy.deepcopy(parent.base), folder).eval()
    return model, model.load_adapter(folder, adapter_name="default")


def assert_cut(parent, folder, count):
    got, result = loaded(parent, folder)
    assert not result.missing_keys
    assert not result.unexpected_keys
    want = parent.cut(count)
    effect = np.abs(logits(want) - logits(parent.base)).max()
    assert np.abs(logits(got) - logits(want)).max() < 2e-5 * effect


PROFILES = ["ragged", "padded", "uniform-by-type", "per-tensor-alpha"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("gamma", [1.0, 0.2, 0.08])
@every_family
def test_a_child_is_the_truncation(family, gamma, profile, trained, tmp_path):
    parent = trained(family)
    child = para.compress(para.load(parent.folder), para.Gamma(gamma))

    para.save(child, tmp_path / "x", profile=profile)

    count = int(2 * len(parent.deltas) * gamma)
    assert len({x.kept for x in child.report.modules}) > 1 or gamma == 1
    assert_cut(parent, tmp_path / "x", count)


@pytest.mark.parametrize("parts", [(0,), (0, 1), (1, 2), (2,)])
@pytest.mark.parametrize("profile", ["ragged", "padded"])
@pytest.mark.parametrize("gamma", [0.1, 0.4])
def test_projections_that_the_parent_lacks_are_zeros(
    parts, profile, gamma, trained, tmp_path
):
    # PEFT 0.21 reads gate and up together alone, and neither without down.
    parent = trained("qwen3", parts)
    child = para.compress(para.load(parent.folder), para.Gamma(gamma))

    para.save(child, tmp_path / "x", profile=profile)

    assert_cut(parent, tmp_path / "x", int(2 * len(parent.deltas) * gamma))


@pytest.mark.parametrize("profile", ["ragged", "per-tensor-alpha"])
@every_family
def test_a_router_has_a_rank_of_its_own(family, profile, trained, tmp_path):
    parent = trained(family, router=True)
    child = para.compress(para.load(parent.folder), para.Gamma(0.6, min_rank=1))

    para.save(child, tmp_path / "x", profile=profile)

    gates = {x.kept for x in child.report.modules if x.path.endswith("gate")}
    assert gates <= {1, 2}
    want, got = child.adapters, para.load(tmp_path / "x").adapters
    for path, x in want.items():
        one, two = x.a.astype(float) @ x.b, got[path].a.astype(float) @ got[path].b
        np.testing.assert_allclose(two * got[path].scale, one, atol=1e-5)
    _, result = loaded(parent, tmp_path / "x")
    assert not result.missing_keys
    assert not result.unexpected_keys


def test_peft_leaves_out_what_the_note_says(tmp_path):
    # Of Qwen2-MoE the experts, of Qwen3-MoE the dense layers: PEFT 0.21.2.
    for i, model in enumerate([qwen2, functools.partial(qwen3, [0])]):
        parent = Parent(Family(model), tmp_path / f"{i}")

        with pytest.warns(UserWarning, match="one module for each expert") as said:
            para.save(para.load(parent.folder), tmp_path / f"child {i}")

        _, result = loaded(parent, tmp_path / f"child {i}")
        dropped = {key.removeprefix(PREFIX) for key in result.unexpected_keys}
        assert dropped
        if i:
            assert all(key.startswith("model.layers.0.mlp.") for key in dropped)
            assert "'model/layers/0/mlp/down_proj'" in str(said[0].message)
        else:
            assert all(".experts." in key for key in dropped)
            assert "Qwen2-MoE" in str(said[0].message)


def converters():
    """Yield transformers' rules for merging one module per expert into a parameter."""
    table = conversion_mapping._build_checkpoint_conversion_mapping()
    for model, rules in table.items():
        for rule in rules:
            several = isinstance(rule, WeightConverter) and any(
                isinstance(x, MergeModulelist) for x in rule.operations
            )
            if several and any("experts" in x for x in rule.source_patterns):
                yield model, rule.source_patterns, rule.target_patterns


def test_the_table_has_all_that_transformers_fuses():
    known = {}
    for model, sources, targets in converters():
        paths = [
            x.removesuffix(".weight").replace("\\", "").replace("*", "3").strip(".")
            for x in sources
        ]
        groups = {expert_modules.group(x.replace(".", "/")) for x in paths}
        assert len(groups) == 1, (model, sources)
        (group,) = groups
        assert len(targets) == 1
        assert group.rpartition("/")[2] == targets[0].rpartition(".")[2], model
        known.setdefault(model, set()).add(group)
    assert len(known) > 20
    assert {len(groups) for groups in known.values()} == {2}
