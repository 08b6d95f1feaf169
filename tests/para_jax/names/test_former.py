"""Test which names are known to be of an older transformers, without transformers."""

import re

import numpy as np
import pytest

import para_jax as para
from para_jax import names
from para_jax.names.former import RENAMES

VIT = "encoder/layer/0/attention/attention/query"


def notes(*paths, trained=None, **config):
    config = {"peft_type": "LORA"} | config
    if trained:
        config["auto_mapping"] = {"base_model_class": trained}
    x = para.Adapter(a=np.ones((4, 1)), b=np.ones((1, 4)))
    return names.former(
        para.Checkpoint(adapters=dict.fromkeys(paths, x), config=config)
    )


@pytest.mark.parametrize(
    ("path", "trained", "release"),
    [
        ("language_model/model/layers/0/mlp/up_proj", None, "4.52"),
        ("visual/blocks/0/attn/qkv", None, "4.52"),
        (
            "model/layers/0/self_attn/q_proj",
            "Qwen2VLForConditionalGeneration",
            "4.52",
        ),
        ("model/layers/0/block_sparse_moe/experts/7/w1", None, "5.0"),
        ("model/layers/0/mlp/experts/12/gate_proj", None, "5.0"),
        ("model/layers/0/block_sparse_moe/gate", None, "5.0"),
        ("model/vision_tower/vision_model/encoder/layers/0/mlp/fc1", None, "5.6"),
        ("vision_model/encoder/layers/0/mlp/fc1", "SiglipVisionModel", "5.6"),
        ("text_model/encoder/layers/0/mlp/fc1", "CLIPTextModel", "5.6"),
        (f"vit/{VIT}", None, "5.9"),
        (VIT, "ViTModel", "5.9"),
        (f"dinov2/{VIT}", None, "5.18"),
        ("encoder/layer/0/mlp/weights_in", "Dinov2Model", "5.18"),
    ],
)
def test_a_former_name_is_told_with_the_release_that_renamed_it(path, trained, release):
    (note,) = notes(path, trained=trained)

    assert note.startswith(f"'{path}' is a name of before transformers {release}: ")
    assert "para_jax.names.to_installed" in note


@pytest.mark.parametrize(
    ("path", "trained"),
    [
        ("model/layers/0/self_attn/q_proj", "LlamaForCausalLM"),
        ("model/layers/0/mlp/experts/gate_up_proj", None),
        ("model/language_model/layers/0/self_attn/q_proj", None),
        # Both encoders together keep the level.
        ("vision_model/encoder/layers/0/mlp/fc1", "SiglipModel"),
        ("vision_model/encoder/layers/0/mlp/fc1", None),
        # Models that still have such names.
        ("language_model/model/layers/0/mlp/up_proj", "Llama4ForConditionalGeneration"),
        ("visual/blocks/0/attn/qkv", "Qwen3VLModel"),
        (f"data2vec_vision/{VIT}", None),
        ("bert/encoder/layer/0/attention/self/query", "BertModel"),
        ("encoder/layer/0/attention/attention/query", None),
        ("dinov2/encoder/layer/0/mlp/fc1", None),
    ],
)
def test_a_name_of_today_has_no_note(path, trained):
    assert notes(path, trained=trained) == ()


def test_one_note_counts_the_names_of_one_rename():
    paths = [f"vit/encoder/layer/{i}/intermediate/dense" for i in range(3)]

    (note,) = notes(*paths, "language_model")

    assert note.startswith(f"'{paths[0]}' and 2 more are names of before")


def test_two_renames_are_two_notes():
    got = notes(f"vit/{VIT}", "model/layers/0/mlp/experts/0/up_proj")

    assert len(got) == 2


def test_only_files_of_peft_have_notes():
    assert notes(f"vit/{VIT}", peft_type=None) == ()
    x = para.Adapter(a=np.ones((4, 1)), b=np.ones((1, 4)))
    assert names.former({f"vit/{VIT}": x}) == ()


def test_the_table_is_in_the_order_of_releases():
    releases = [tuple(map(int, x.release.split("."))) for x in RENAMES]

    assert releases == sorted(releases)
    for rename in RENAMES:
        re.compile(rename.former)
