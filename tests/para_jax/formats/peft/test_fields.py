"""Test the fields a child's configuration keeps of its parent's, one by one."""

import json

import numpy as np
import pytest
import safetensors.numpy

import para_jax as para
from para_jax.formats.peft import fields as peft_fields

pytestmark = pytest.mark.user_defaults

PREFIX = "base_model.model."
NAMES = ("0.q", "1.q")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write(folder, *, extra=(), small=(), targets=("q",), **fields):
    """Write a parent of `NAMES`; those in `small` are cut first."""
    tensors = {f"{PREFIX}{name}": random(5, seed=9) for name in extra}
    for i, name in enumerate(NAMES):
        size = 1e-6 if name in small else 1.0
        tensors[f"{PREFIX}{name}.lora_A.weight"] = random(3, 7, seed=i)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = size * random(5, 3, seed=i + 5)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6} | fields
    folder.mkdir()
    safetensors.numpy.save_file(
        {k: x.astype(np.float32) for k, x in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"target_modules": targets})
    )
    return folder


def child_of(folder, *, gamma=1.0, adapters_only=False, profile="ragged"):
    parent = para.load(folder, adapters_only=adapters_only)
    child = para.compress(parent, para.Gamma(gamma))
    para.save(child, folder.parent / "child", profile=profile)
    return json.loads((folder.parent / "child" / "adapter_config.json").read_text())


def test_every_field_has_a_fate_and_a_reason():
    for name, field in peft_fields.FIELDS.items():
        assert field.fate in ("kept", "recomputed", "dropped", "refused"), name
        assert field.reason, name


KEPT = {
    "base_model_name_or_path": "some/model",
    "revision": "main",
    "auto_mapping": {"base_model_class": "X", "parent_library": "y"},
    "peft_version": "0.21.2",
    "inference_mode": True,
    "lora_dropout": 0.1,
    "fan_in_fan_out": True,
    "megatron_config": {"a": 1},
    "megatron_core": "megatron.core",
    "layer_replication": [[0, 2], [1, 3]],
    "qalora_group_size": 8,
    "task_type": "CAUSAL_LM",
    "a_field_of_tomorrow": [1, None],
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("adapters_only", [True, False])
def test_what_is_of_the_base_model_or_of_training_stays(name, adapters_only, tmp_path):
    folder = write(tmp_path / "x", **{name: KEPT[name]})

    got = child_of(folder, adapters_only=adapters_only)

    assert got[name] == KEPT[name]


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("loftq_config", {"loftq_bits": 4}, {}),
        ("eva_config", {"rho": 2.0}, None),
        ("corda_config", {"corda_method": "ipm"}, None),
        ("lora_ga_config", {"direction": "ArB2r"}, None),
        ("velora_config", {"num_groups": 2}, None),
        ("monteclora_config", {"num_samples": 4}, None),
        ("init_lora_weights", "eva", True),
        ("init_lora_weights", "MiCA", True),
        ("init_lora_weights", "orthogonal", True),
        ("init_lora_weights", False, True),
        ("init_lora_weights", "gaussian", "gaussian"),
    ],
)
def test_how_the_parent_was_begun_is_not_how_the_child_is(name, value, want, tmp_path):
    assert child_of(write(tmp_path / "x", **{name: value}))[name] == want


@pytest.mark.parametrize("name", ["runtime_config", "merge_weights"])
def test_what_no_release_reads_goes(name, tmp_path):
    assert name not in child_of(write(tmp_path / "x", **{name: True}))


@pytest.mark.parametrize(
    ("name", "value", "tensors", "without"),
    [
        ("modules_to_save", ["head", "norm"], ["a.head.weight", "norm.weight"], None),
        ("modules_to_save", ["head.out"], ["head.out.linear.weight"], None),
        ("bias", "all", ["norm.bias", "0.q.base_layer.bias"], "none"),
        ("bias", "lora_only", ["1.q.base_layer.bias"], "none"),
        (
            "trainable_token_indices",
            {"embed": [1, 4]},
            ["embed.token_adapter.trainable_tokens_delta"],
            None,
        ),
    ],
)
def test_a_field_goes_with_its_tensors(name, value, tensors, without, tmp_path):
    folder = write(tmp_path / "x", extra=tensors, **{name: value})

    assert child_of(folder)[name] == value
    para.load(tmp_path / "child")
    (tmp_path / "child").rename(tmp_path / "whole")
    assert child_of(folder, adapters_only=True)[name] == without


def test_a_module_to_save_goes_alone_if_its_tensor_does(tmp_path):
    saved = ["head", "gone"]
    folder = write(tmp_path / "x", extra=["head.weight"], modules_to_save=saved)

    assert child_of(folder)["modules_to_save"] == ["head"]


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
def test_a_task_goes_with_the_head_that_peft_would_ask_for(task, tmp_path):
    fields = {"task_type": task, "modules_to_save": ["score"]}
    folder = write(tmp_path / "x", extra=["score.weight"], **fields)

    assert child_of(folder)["task_type"] == task
    (tmp_path / "child").rename(tmp_path / "whole")
    assert child_of(folder, adapters_only=True)["task_type"] is None


@pytest.mark.parametrize("profile", ["ragged", "padded", "per-tensor-alpha"])
def test_the_parents_own_list_stays_if_the_child_has_all_its_modules(profile, tmp_path):
    folder = write(tmp_path / "x", layers_to_transform=[0, 1], exclude_modules=["v"])

    got = child_of(folder, profile=profile)

    assert got["target_modules"] == ["q"]
    assert got["layers_to_transform"] == [0, 1]
    assert got["exclude_modules"] == ["v"]


@pytest.mark.parametrize("targets", [r".*\.q", None, ["0.q"]])
def test_a_list_that_does_not_reach_them_all_by_itself_does_not_stay(targets, tmp_path):
    folder = write(tmp_path / "x", targets=targets)

    assert child_of(folder)["target_modules"] == list(NAMES)


def test_a_short_name_does_not_stay_where_a_module_is_gone(tmp_path):
    fields = {"layers_to_transform": [0, 1], "layers_pattern": "layers"}
    folder = write(tmp_path / "x", small=["1.q"], **fields)

    got = child_of(folder, gamma=0.5)

    assert got["target_modules"] == ["0.q"]
    assert got["layers_to_transform"] is got["layers_pattern"] is None


def test_a_short_name_does_not_stay_where_an_adapter_was_taken_out(tmp_path):
    parent = para.load(write(tmp_path / "x"))
    some = {"0/q": parent.adapters["0/q"]}

    para.save(
        para.Checkpoint(adapters=some, config=parent.config, modules=parent.modules),
        tmp_path / "child",
    )

    got = json.loads((tmp_path / "child" / "adapter_config.json").read_text())
    assert got["target_modules"] == ["0.q"]


def test_nothing_is_tied_that_the_file_does_not_tie(tmp_path):
    folder = write(tmp_path / "x", ensure_weight_tying=True, targets=r".*\.q")

    assert child_of(folder)["ensure_weight_tying"] is False


def test_saved_modules_stay_tied(tmp_path):
    fields = {"ensure_weight_tying": True, "modules_to_save": ["m.embed_tokens"]}
    names = ["m.embed_tokens.weight", "lm_head.weight"]
    folder = write(tmp_path / "x", extra=names, **fields)

    assert child_of(folder)["ensure_weight_tying"] is True
    (tmp_path / "child").rename(tmp_path / "whole")
    assert child_of(folder, adapters_only=True)["ensure_weight_tying"] is False


@pytest.mark.parametrize(
    ("field", "tensor"),
    [
        ("velora_config", "lora_velora_embed"),
        ("monteclora_config", "lora_monteclora_sampler.std_prior"),
        ("monteclora_config", "lora_monteclora_sampler.expert_weights"),
    ],
)
def test_what_only_training_uses_is_not_read(field, tensor, tmp_path):
    names = [f"0.q.{tensor}", f"1.q.{tensor}"]
    folder = write(tmp_path / "x", extra=names, **{field: {"num_groups": 2}})

    got = para.load(folder)

    assert got.adapters.keys() == {"0/q", "1/q"}
    assert got.extra == {}


@pytest.mark.parametrize("profile", ["ragged", "padded"])
def test_an_adapter_of_changed_weights_is_not_written_as_a_plain_one(profile, tmp_path):
    parent = para.load(write(tmp_path / "x", init_lora_weights="pissa"))

    with pytest.raises(ValueError, match=r"PiSSA.*para_jax\.plain"):
        para.save(parent, tmp_path / "child", profile=profile)

    assert not (tmp_path / "child").exists()
