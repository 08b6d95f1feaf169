"""Check which trees an engine of language models serves under their own names."""

import numpy as np
import pytest

import para_jax as para

HF = "model/layers/0/self_attn/q_proj"
ENGINES = [
    name
    for name, x in para.formats.ENGINES.items()
    if "hf" in x.reads and "jax" not in x.reads and not x.layouts
]


def parent(*paths, stack=()):
    tree = {}
    for path in paths:
        node = tree
        for part in path.split("/"):
            node = node.setdefault(part, {})
        rng = np.random.default_rng(len(path))
        node["lora_a"] = rng.normal(size=(*stack, 8, 4)).astype("f4")
        node["lora_b"] = rng.normal(size=(*stack, 4, 8)).astype("f4")
    return para.from_tree(tree)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("paths", [(HF,), (HF, "lm_head", "model/embed_tokens")])
def test_a_tree_with_hugging_faces_names_needs_no_renaming(engine, paths):
    """EasyDeL's models are such: flax.nnx's LoRA below the names of transformers."""
    found = para.formats.named(parent(*paths), engine, form="peft")

    assert found.adapters.keys() == set(paths)


def test_the_engines_on_the_list_are_those_of_language_models():
    assert {"vllm", "sglang"} <= set(ENGINES)


def test_the_file_has_the_names_that_the_tree_has(tmp_path):
    child = para.compress(parent(HF), para.Gamma(0.5))

    para.save(child, tmp_path / "adapter", engine="vllm")

    assert list(para.load(tmp_path / "adapter").adapters) == [HF]
    (vllm,) = (x for x in para.formats.costs(child) if x.engine == "vllm")
    assert vllm.bytes


@pytest.mark.parametrize(
    "path",
    [
        "layers/0/attn/q_proj",
        "decoder/layers_0/self_attention/query",
        "model/layers/self_attn/q_proj",
        "transformer/layers/blocks/0/self_attn/q_proj",
    ],
)
def test_a_path_of_jax_alone_is_refused_and_named(path):
    with pytest.raises(ValueError, match=f"'{path}' is a JAX path.*to_hf"):
        para.formats.named(parent(HF, path), "vllm", form="peft")
