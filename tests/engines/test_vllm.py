"""Tests of vLLM, the whole engine on CPU, against transformers and PEFT."""

import contextlib
import functools
import pathlib

import numpy as np
import pytest
import safetensors.numpy

import para_jax as para
from para_jax._engines import prepare
from tests.engines import harness, loading, models

BOUND = 1e-4
"""Of log-probabilities that an adapter changes by 3: both compute in float32."""

GAMMA = ("--gamma", "0.4")
FORMS = {
    "ragged": (*GAMMA,),
    "vllm": (*GAMMA, "--for", "vllm"),
    "padded": (*GAMMA, "--profile", "padded"),
    "per-tensor-alpha": (*GAMMA, "--profile", "per-tensor-alpha"),
    "sglang": (*GAMMA, "--for", "sglang"),
    "few": ("--gamma", "0.08", "--for", "vllm"),
}
DENSE = ("llama", "qwen3")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Run all files of one family in one engine."""

    @functools.cache
    def get(family: str):
        folder = tmp_path_factory.mktemp(family)
        base, files = loading.written(folder, FORMS, family=family)
        if family == "llama":
            files |= _parents_and_children(base, folder)
            files |= _refused(base, folder)
        job = {
            "model": base,
            "adapters": files,
            "tokens": models.PROMPTS,
            "new": models.NEW,
            "max_lora_rank": 8,
        }
        return base, files, harness.run("vllm", job, folder)

    return get


def _parents_and_children(base, folder):
    """Write parents of other kinds, and their children for vLLM."""
    shapes = models.linear_shapes(base, loading.ALL)
    parents = {
        "rslora": (shapes, {"config": {"use_rslora": True}}),
        "patterns": (
            shapes,
            {
                "config": {
                    "rank_pattern": {"down_proj": 4},
                    "alpha_pattern": {"down_proj": 12, "q_proj": 24},
                },
                "ranks": {"down_proj": 4},
            },
        ),
        "q and up": (models.linear_shapes(base, ("q_proj", "up_proj")), {}),
        "embeddings": (models.linear_shapes(base, (*loading.ALL, "embed_tokens")), {}),
        "lm_head": (models.linear_shapes(base, (*loading.ALL, "lm_head")), {}),
    }
    files = {}
    for name, (wanted, more) in parents.items():
        files[f"{name}: parent"] = models.adapter(folder / name, wanted, **more)
        child = folder / f"{name} child"
        files[f"{name}: ragged"] = harness.compress(folder / name, child, *GAMMA)
    return files


EXPERTS = ("mixtral", "qwen3-moe")
EXPERT_FORMS = {
    "vllm": (*GAMMA, "--for", "vllm"),
    "few": ("--gamma", "0.1", "--for", "vllm"),
    "padded": (*GAMMA, "--profile", "padded"),
    "ragged": (*GAMMA,),
}


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Load the files of one family into one engine."""

    @functools.cache
    def get(family: str):
        folder = tmp_path_factory.mktemp(family)
        options = {"targets": models.ATTENTION, "experts": True}
        base, files = loading.written(folder, EXPERT_FORMS, family=family, **options)
        rank = max(_allocated(x) for x in files.values())
        job = {"model": base, "adapters": files, "max_lora_rank": rank}
        answer = harness.run("vllm", job | {"buffers": True}, folder)
        return loading.Loaded("vllm", files, answer, family)

    return get


def _allocated(child: pathlib.Path) -> int:
    """Return the rank that we report as vLLM's required `max_lora_rank`."""
    (cost,) = (x for x in prepare.costs(para.load(child)) if x.engine == "vllm")
    return cost.allocated


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize("label", ["parent", *EXPERT_FORMS])
def test_its_buffers_hold_the_experts_that_were_written(experts, row, family, label):
    # Only the buffers are checked: vLLM's expert kernels with adapters need CUDA.
    loading.check_held(experts(family), label, row)


FUSED = {
    "vllm": (*GAMMA, "--for", "vllm"),
    "few": ("--gamma", "0.05", "--for", "vllm"),
}


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    """Load files of fused experts into one engine."""
    folder = tmp_path_factory.mktemp("fused")
    base = models.make("qwen3-moe", folder / "base")
    shapes = models.linear_shapes(base, models.ATTENTION) | models.fused_shapes(base)
    config = {
        "target_modules": list(models.ATTENTION),
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }
    ranks = {"base_layer": 4 * 8, "experts": 4 * 8}
    parent = models.adapter(folder / "parent", shapes, config=config, ranks=ranks)
    files = {"parent": parent}
    for label, words in FUSED.items():
        files[label] = harness.compress(parent, folder / label, *words)
    job = {"model": base, "adapters": files, "max_lora_rank": 8}
    # vLLM's Qwen3-MoE has one module for each expert.
    more = {"fused": True, "options": {"enable_mixed_moe_lora_format": True}}
    answer = harness.run("vllm", job | {"buffers": True} | more, folder)
    return loading.Loaded("vllm", files, answer, "qwen3-moe, fused")


@pytest.mark.parametrize("label", ["parent", *FUSED])
def test_its_buffers_hold_the_fused_experts_that_were_written(fused, row, label):
    wanted = models.fused_updates(fused.files[label], experts=4)

    loading.check_held(fused, label, row, wanted=wanted)


HEADS = {"vllm": (*GAMMA, "--for", "vllm"), "ragged": GAMMA}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Run a classifier whose adapter has a whole trained head."""
    folder = tmp_path_factory.mktemp("classifier")
    base = models.make_classifier(folder / "base")
    parent = models.adapter(
        folder / "parent",
        models.linear_shapes(base, loading.ALL),
        config={"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]},
    )
    _add(parent, {"score": (3, 64)}, "whole")
    files = {"parent": parent}
    for label, words in HEADS.items():
        files[label] = harness.compress(parent, folder / label, *words)
    job = {"model": base, "adapters": files, "tokens": models.PROMPTS}
    job |= {"max_lora_rank": 8, "classifier": True, "options": {"runner": "pooling"}}
    return base, files, harness.run("vllm", job, folder)


@pytest.mark.parametrize("label", ["parent", *HEADS])
def test_it_classifies_as_peft_with_the_head_of_the_file(classifier, row, label):
    base, files, answer = classifier

    assert answer.refused.get(label) is None
    wanted = models.scored_with_peft(base, files[label])
    got = float(np.abs(answer.arrays[f"{label}/scores"] - wanted).max())

    row(
        engine="vllm",
        version=answer.version,
        loaded=f"llama classifier: {label}",
        difference=got,
        of="scores",
    )
    assert np.abs(wanted - answer.arrays["base/scores"]).max() > 0.5
    assert got < BOUND


REFUSED = {
    "dora": ({"use_dora": True}, ("lora_magnitude_vector", 1), "DoRA"),
    "lora_bias": ({"lora_bias": True}, ("lora_B.bias", 1), "bias"),
    "layer_replication": (
        {"layer_replication": [[0, 2], [1, 3]]},
        (),
        "does not support layer_replication",
    ),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, (), "modules_to_save"),
    "a rank above the buffers'": ({"r": 16}, (), "rank"),
    "a whole embedding beside": ({}, ("embed_tokens",), "unsupported LoRA weight"),
}
"""What is added to a config and to the tensors, and a part of what vLLM says."""


def _refused(base, folder):
    """Write parents refused by vLLM, and their children if we can write them."""
    files, shapes = {}, models.linear_shapes(base, loading.ALL)
    for name, (config, added, _) in REFUSED.items():
        rank = config.get("r", 8)
        parent = models.adapter(folder / name, shapes, rank=rank, config=config)
        files[f"{name}: parent"] = parent
        _add(parent, shapes, *added)
        if name.startswith("modules"):
            _add(parent, {"lm_head": (320, 64)}, "whole")
        with contextlib.suppress(AssertionError):
            words = (*FORMS["vllm"], "--max-rank", "8")
            child = harness.compress(parent, folder / f"{name} child", *words)
            files[f"{name}: child"] = child
    return files


def _add(parent: pathlib.Path, shapes: dict, what: str = "", axes: int = 2) -> None:
    """Add a tensor for each module, or a whole parameter, to a parent."""
    file, random = parent / "adapter_model.safetensors", np.random.default_rng(5)
    tensors = safetensors.numpy.load_file(file)
    if what == "embed_tokens":
        shapes, what = {"model.embed_tokens": (320, 64)}, "whole"
    for path, shape in shapes.items() if what else ():
        x = random.normal(size=shape[:axes]).astype(np.float32)
        end = "weight" if what == "whole" else what
        tensors[f"base_model.model.{path}.{end}"] = x
    safetensors.numpy.save_file(tensors, file)


LLAMA = [
    f"{name}: {form}"
    for name in ("rslora", "patterns", "q and up", "embeddings", "lm_head")
    for form in ("parent", "ragged")
]


@pytest.mark.parametrize(
    ("family", "label"),
    [(x, y) for x in DENSE for y in ("parent", *FORMS)] + [("llama", x) for x in LLAMA],
)
def test_it_computes_what_peft_computes(dense, row, family, label):
    base, files, answer = dense(family)

    wanted = models.with_peft(base, files[label])
    assert answer.refused.get(label) is None
    got = harness.difference(answer, label, wanted)
    same = harness.tokens(answer, label, wanted)

    row(
        engine="vllm",
        version=answer.version,
        loaded=f"{family}: {label}",
        difference=got,
        of="log-probabilities",
        tokens=same,
    )
    effect = np.abs(wanted["prompt"] - models.with_nothing(base)["prompt"]).max()
    assert effect > 0.5
    assert got < BOUND
    assert same == f"{wanted['tokens'].size}/{wanted['tokens'].size}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses_is_refused_by_us_or_made_right(dense, row, name):
    base, files, answer = dense("llama")

    loaded = loading.Loaded("vllm", files, answer)
    loading.check_refused(loaded, f"{name}: parent", row, match=REFUSED[name][2])
    if (child := f"{name}: child") not in files:
        return
    assert answer.refused.get(child) is None
    wanted = models.with_peft(base, files[child])
    assert harness.difference(answer, child, wanted) < BOUND
