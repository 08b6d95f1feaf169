"""Test experts of one module each in every profile: one rank if readers stack them."""

import json

import numpy as np
import pytest
import safetensors.numpy

import para_jax as para
from para_jax._engines import experts as expert_modules, prepare, profiles

pytestmark = [
    pytest.mark.user_defaults,
    pytest.mark.filterwarnings("ignore:.*one module for each expert"),
]

PREFIX = "base_model.model."
NAMES = {
    "block_sparse_moe": ("w1", "w3", "w2"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
every_profile = pytest.mark.parametrize("profile", profiles.PROFILES)
every_family = pytest.mark.parametrize("moe", NAMES)


def adapter(m, n, r, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(m, r)), rng.normal(size=(r, n))
    return para.Adapter(a.astype(np.float32), b.astype(np.float32))


def experts(moe, ranks):
    """Return adapters of experts: `{(layer, number, which): rank}`; 0 is absent."""
    adapters, absent = {}, {}
    for seed, ((i, e, which), r) in enumerate(ranks.items()):
        path = f"layers/{i}/{moe}/experts/{e}/{NAMES[moe][which]}"
        m, n = (7, 5) if which < 2 else (5, 7)
        if r:
            adapters[path] = adapter(m, n, r, seed)
        else:
            absent[path] = m, n
    adapters["layers/0/q"] = adapter(7, 7, 2, 99)
    return para.Checkpoint(adapters=adapters, absent=absent)


def written(folder):
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    ends = ".lora_A.weight"
    ranks = {
        key.removeprefix(PREFIX).removesuffix(ends): x.shape[0]
        for key, x in tensors.items()
        if key.endswith(ends)
    }
    return ranks, config


RANKS = {
    (0, 0, 0): 1, (0, 0, 1): 3, (0, 0, 2): 2,
    (0, 1, 0): 0, (0, 1, 1): 2, (0, 1, 2): 1,
    (1, 0, 0): 0, (1, 0, 1): 0, (1, 0, 2): 4,
    (1, 1, 0): 0, (1, 1, 1): 0, (1, 1, 2): 0,
}  # fmt: skip


@every_family
@pytest.mark.parametrize("profile", ["ragged", "per-tensor-alpha"])
def test_gate_and_up_have_one_rank_and_down_has_its_own(moe, profile, tmp_path):
    para.save(experts(moe, RANKS), tmp_path / "x", profile=profile)

    got, config = written(tmp_path / "x")

    gate, up, down = NAMES[moe]
    for i, (both, other) in enumerate([(3, 2), (1, 4)]):
        for e in range(2):
            start = f"layers.{i}.{moe}.experts.{e}."
            ranks = {name: got[start + name] for name in (gate, up, down)}
            assert ranks == {gate: both, up: both, down: other}
    fused = {x: r for x, r in config["rank_pattern"].items() if "experts.0" not in x}
    fused = {x: r for x, r in fused.items() if "experts.1" not in x and x[-1] == "j"}
    assert fused == {
        "layers.0.mlp.experts.gate_up_proj": 6,
        "layers.0.mlp.experts.down_proj": 2,
        "layers.1.mlp.experts.gate_up_proj": 2,
    }


@every_profile
@every_family
def test_updates_are_what_they_were(moe, profile, tmp_path):
    want = experts(moe, RANKS)

    para.save(want, tmp_path / "x", profile=profile)

    got = para.load(tmp_path / "x").adapters
    assert got.keys() == want.adapters.keys() | want.absent.keys()
    for path, x in got.items():
        one = want.adapters.get(path)
        delta = 0 if one is None else one.a.astype(np.float64) @ one.b
        product = x.scale * x.a.astype(np.float64) @ x.b
        np.testing.assert_allclose(product, delta + 0 * product, atol=1e-6)


@every_profile
def test_one_rank_over_layers_stays_one_rank_of_gate_and_up(profile, tmp_path):
    para.save(experts("mlp", RANKS), tmp_path / "x", profile=profile)

    got, _ = written(tmp_path / "x")

    for name, rank in got.items():
        if name.endswith("gate_proj"):
            assert got[name.replace("gate_proj", "up_proj")] == rank


@pytest.mark.parametrize(
    ("there", "want"),
    [
        ({0}, {0, 1, 2}),
        ({0, 1}, {0, 1, 2}),
        ({1, 2}, {0, 1, 2}),
        ({2}, {2}),
    ],
)
@every_family
def test_what_peft_reads_together_is_there_together(moe, there, want, tmp_path):
    ranks = {(0, e, which): 2 for e in range(2) for which in there}

    para.save(experts(moe, ranks), tmp_path / "x")

    got, _ = written(tmp_path / "x")
    names = {name.rpartition(".")[2] for name in got if "experts" in name}
    assert names == {NAMES[moe][which] for which in want}
    again = para.load(tmp_path / "x").adapters
    for e in range(2):
        for which in want - there:
            x = again[f"layers/0/{moe}/experts/{e}/{NAMES[moe][which]}"]
            assert (x.inputs, x.outputs) == ((7, 5) if which < 2 else (5, 7))
            assert not x.a.any()


def test_down_alone_is_completed_where_a_reader_wants_all():
    shapes = {"l/mlp/experts/0/down_proj": (5, 3, 7)}

    assert expert_modules.missing(shapes) == {}
    assert expert_modules.missing(shapes, every=True) == {
        "l/mlp/experts/0/gate_proj": (7, 0, 5),
        "l/mlp/experts/0/up_proj": (7, 0, 5),
    }


@every_profile
def test_without_any_expert_left_none_is_written(profile, tmp_path):
    gone = dict.fromkeys(RANKS, 0)

    para.save(experts("mlp", gone), tmp_path / "x", profile=profile)

    got, _ = written(tmp_path / "x")
    assert any("experts" in name for name in got) == (profile == "padded")


def test_a_router_has_its_rank_under_the_name_of_its_parameter():
    ranks = {"l.0.block_sparse_moe.gate": 2, "l.1.mlp.gate": 3, "l.2.mlp.gate": 4}

    got = expert_modules.stacked_ranks(ranks | {"l.0.self_attn.gate": 2}, 4)

    assert got == {"l.0.mlp.gate.weight": 2, "l.1.mlp.gate.weight": 3}


@pytest.mark.filterwarnings("default")
def test_what_peft_leaves_out_is_said(tmp_path):
    parent = experts("mlp", RANKS)
    dense = {"layers/2/mlp/gate_proj": adapter(7, 5, 2, 7)}
    whole = para.Checkpoint(adapters={**parent.adapters, **dense})

    with pytest.warns(UserWarning, match="one module for each expert") as said:
        para.save(whole, tmp_path / "x")

    assert "'layers/2/mlp/gate_proj'" in str(said[0].message)
    assert "Qwen2-MoE" in str(said[0].message)


def test_other_modules_are_by_themselves():
    for path in ("layers/0/mlp/gate_proj", "experts/gate_up_proj/3", "a/experts/x/w1"):
        assert expert_modules.group(path) == path
    assert (
        expert_modules.group("a/mixer/experts/3/up_proj") == "a/mixer/experts/up_proj"
    )
    assert expert_modules.group("experts/3/w2") == "experts/down_proj"


@every_family
@pytest.mark.parametrize("engine", ["vllm", "tpu-inference"])
def test_the_buffers_of_an_engine_hold_all_ranks_of_the_config(moe, engine, tmp_path):
    child = experts(moe, {(0, 0, 0): 5, (0, 0, 1): 5, (0, 0, 2): 8})

    (cost,) = (x for x in prepare.costs(child) if x.engine == engine)
    ready = prepare.prepare(child, engine)
    para.save(ready.checkpoint, tmp_path / "x", profile=ready.profile)

    _, config = written(tmp_path / "x")
    # As vLLM 0.32 has it, `PEFTHelper.validate_legal`.
    checked = max([config["r"], *config["rank_pattern"].values()])
    assert (cost.rank, checked, cost.allocated) == (8, 10, 16)
