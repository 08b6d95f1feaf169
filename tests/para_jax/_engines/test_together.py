"""Test the parameters of fused experts that vLLM loads together."""

import json

import numpy as np
import pytest
import safetensors.numpy

import para_jax as para

pytestmark = pytest.mark.user_defaults

OWNER = "model/layers/{}/mlp/experts"
SHAPES = {"gate_up_proj": (8, 10), "down_proj": (5, 8)}
EXPERTS = para.Layer(kind="experts")


def stack(name, rank, experts=3, seed=0):
    m, n = SHAPES.get(name, (8, 6))
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(experts, m, rank)), rng.normal(size=(experts, rank, n))
    return para.Adapter(a.astype(np.float32), b.astype(np.float32))


def written(folder):
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): x for name, x in tensors.items()}


def test_a_pair_of_parameters_is_written_at_ranks_of_its_own(tmp_path):
    owner = OWNER.format(0)
    ranks = {f"{owner}/gate_up_proj": 3, f"{owner}/down_proj": 2}
    adapters = {p: stack(p.rpartition("/")[2], r) for p, r in ranks.items()}
    layers = dict.fromkeys(adapters, EXPERTS)

    parent = para.Checkpoint(adapters=adapters, layers=layers)
    para.save(parent, tmp_path / "x", engine="vllm")

    # PEFT's keys, as vLLM's `_stack_moe_lora_weights` looks them up.
    owner = owner.replace("/", ".")
    assert {name: x.shape for name, x in written(tmp_path / "x").items()} == {
        f"{owner}.base_layer.lora_A.weight": (3 * 3, 8),
        f"{owner}.base_layer.lora_B.weight": (10, 3 * 3),
        f"{owner}.lora_A.weight": (3 * 2, 5),
        f"{owner}.lora_B.weight": (8, 3 * 2),
    }
    config = json.loads((tmp_path / "x/adapter_config.json").read_text())
    assert config["rank_pattern"] == {f"{owner}.down_proj": 2}


def test_a_parameter_that_kept_nothing_is_written_as_zeros(tmp_path):
    owners = [OWNER.format(i) for i in range(2)]
    held = [f"{owners[0]}/gate_up_proj", f"{owners[0]}/down_proj"]
    held += [f"{owners[1]}/down_proj"]
    adapters = {p: stack(p.rpartition("/")[2], 2) for p in held}
    gone = f"{owners[1]}/gate_up_proj"
    parent = para.Checkpoint(
        adapters=adapters,
        layers=dict.fromkeys([*held, gone], EXPERTS)
        | {f"{gone}/{i}": EXPERTS for i in range(3)},
        absent={f"{gone}/{i}": SHAPES["gate_up_proj"] for i in range(3)},
    )

    para.save(parent, tmp_path / "x", engine="vllm")

    tensors = written(tmp_path / "x")
    owner = owners[1].replace("/", ".")
    b = tensors[f"{owner}.base_layer.lora_B.weight"]
    assert b.shape == (10, 3)
    assert not b.any()
    assert len(tensors) == 8


@pytest.mark.parametrize("name", SHAPES)
def test_half_a_pair_that_no_parent_had_is_refused(name, tmp_path):
    path = f"{OWNER.format(0)}/{name}"
    parent = para.Checkpoint(adapters={path: stack(name, 2)}, layers={path: EXPERTS})

    with pytest.raises(ValueError, match=rf"vllm.*factors for \['{name}'\] alone"):
        para.save(parent, tmp_path / "x", engine="vllm")
    assert not list(tmp_path.iterdir())


def test_other_parameters_are_refused(tmp_path):
    path = f"{OWNER.format(0)}/router_proj"
    parent = para.Checkpoint(
        adapters={path: stack("router_proj", 2)}, layers={path: EXPERTS}
    )

    with pytest.raises(ValueError, match="router_proj' is a parameter that it does"):
        para.save(parent, tmp_path / "x", engine="vllm")
