"""Tests of llama.cpp's conversion scripts and server against transformers and PEFT."""

import functools

import numpy as np
import pytest

from tests.engines import harness, loading, models

BOUND = 1e-4
"""Of log-probabilities that an adapter changes by 1 to 3."""

BASE_BOUNDS = {"gemma3": 1e-2}
"""Of models that ggml computes otherwise: it has another approximation of GELU."""

GAMMA = ("--gamma", "0.4")
FORMS = {
    "ragged": (*GAMMA,),
    "llamacpp": (*GAMMA, "--for", "llamacpp"),
    "padded": (*GAMMA, "--profile", "padded"),
    "uniform-by-type": (*GAMMA, "--profile", "uniform-by-type"),
    "few": ("--gamma", "0.1", "--for", "llamacpp"),
}
RIGHT = ("llamacpp", "padded", "few")
ALL = (*models.ATTENTION, *models.MLP, "qkv_proj", "gate_up_proj")
PARENTS = {
    "rslora": {"config": {"use_rslora": True}},
    "patterns": {
        "config": {
            "rank_pattern": {"down_proj": 4},
            "alpha_pattern": {"down_proj": 12, "q_proj": 24},
        },
        "ranks": {"down_proj": 4},
    },
    "embeddings": {"targets": (*ALL, "embed_tokens", "lm_head")},
}
"""Other parents, for llama."""

FAMILIES = ("llama", "llama-tied", "qwen2", "qwen3", "gemma3", "phi3", "mixtral")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Run all files of one family in one process."""

    @functools.cache
    def get(family: str):
        folder = tmp_path_factory.mktemp(family)
        options = {"targets": ALL, "experts": family == "mixtral"}
        base, files = loading.written(folder, FORMS, family=family, **options)
        for name, options in PARENTS.items() if family == "llama" else ():
            more = dict(options)
            wanted = models.linear_shapes(base, more.pop("targets", ALL))
            parent = models.adapter(folder / name, wanted, **more)
            files[f"{name}: parent"] = parent
            target, words = folder / f"{name} child", FORMS["llamacpp"]
            files[f"{name}: llamacpp"] = harness.compress(parent, target, *words)
        job = {
            "model": base,
            "adapters": files,
            "tokens": models.PROMPTS,
            "new": models.NEW,
        }
        return base, files, harness.run("llamacpp", job, folder)

    return get


def bound(family: str) -> float:
    return BASE_BOUNDS.get(family, BOUND)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_the_same_without_an_adapter(engine, family):
    base, _, answer = engine(family)

    assert harness.difference(answer, "base", models.with_nothing(base)) < bound(family)


CASES = [(family, x) for family in FAMILIES for x in ("parent", *RIGHT)]
CASES += [("llama", f"{name}: llamacpp") for name in PARENTS]


@pytest.mark.parametrize(("family", "label"), CASES)
def test_it_computes_what_was_written(engine, row, family, label):
    base, files, answer = engine(family)

    assert answer.refused.get(label) is None
    wanted = models.with_numpy(base, files[label])
    got = harness.difference(answer, label, wanted)
    same = harness.tokens(answer, label, wanted)

    row(
        engine="llamacpp",
        version=answer.version,
        loaded=f"{family}: {label}",
        difference=got,
        of="log-probabilities",
        tokens=same,
    )
    assert np.abs(wanted["steps"] - models.with_nothing(base)["steps"]).max() > 0.5
    assert got < bound(family)
    if family not in BASE_BOUNDS:
        assert same == f"{wanted['tokens'].size}/{wanted['tokens'].size}"


@pytest.mark.parametrize("form", ["ragged", "uniform-by-type"])
@pytest.mark.parametrize("family", FAMILIES)
def test_unequal_ranks_under_one_alpha_are_each_divided_by_their_own(
    engine, row, family, form
):
    base, files, answer = engine(family)

    if refused := answer.refused.get(form):
        assert family == "mixtral", refused  # A layer lacks some experts.
        return
    wrong = models.with_numpy(base, files[form], rule="tensor")
    right = models.with_numpy(base, files[form])
    got = harness.difference(answer, form, wrong)

    row(
        engine="llamacpp",
        version=answer.version,
        loaded=f"{family}: {form}, against lora_alpha / rank",
        difference=got,
        of="log-probabilities",
        tokens=harness.tokens(answer, form, wrong),
    )
    assert got < bound(family)
    assert harness.difference(answer, form, right) > 0.1


@pytest.mark.parametrize("name", ["rslora", "patterns"])
def test_parents_whose_scale_it_does_not_read_are_wrong(engine, name):
    base, files, answer = engine("llama")

    label = f"{name}: parent"
    assert not answer.refused.get(label)
    right = models.with_peft(base, files[label])
    assert harness.difference(answer, label, right) > 0.1
