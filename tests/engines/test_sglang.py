"""SGLang's own loading: its config, adapter and pool of buffers, against `s B A`."""

import numpy as np
import pytest

from tests.engines import harness, models

ALL = models.ATTENTION + models.MLP
GAMMA = ("--gamma", "0.4")
FORMS = {
    "sglang": (*GAMMA, "--for", "sglang"),
    "few": ("--gamma", "0.08", "--for", "sglang"),
    "padded": (*GAMMA, "--profile", "padded"),
}
UNEQUAL = {
    "ragged": (*GAMMA,),
    "per-tensor-alpha": (*GAMMA, "--profile", "per-tensor-alpha"),
    "uniform-by-type": (*GAMMA, "--profile", "uniform-by-type"),
}
PARENTS = {
    "parent": {},
    "rslora": {"config": {"use_rslora": True}},
    "patterns": {"config": {"alpha_pattern": {"down_proj": 12, "q_proj": 24}}},
    "embeddings": {},
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Load all files in one process."""
    folder = tmp_path_factory.mktemp("sglang")
    base, files = models.make("llama", folder / "base"), {}
    for name, options in PARENTS.items():
        more = ("embed_tokens", "lm_head") if name == "embeddings" else ()
        shapes = models.linear_shapes(base, (*ALL, *more))
        files[name] = models.adapter(folder / name, shapes, **options)
        child = folder / f"{name} child"
        words = FORMS["sglang"]
        files[f"{name}: sglang"] = harness.compress(files[name], child, *words)
    for form, words in (FORMS | UNEQUAL).items():
        files[form] = harness.compress(files["parent"], folder / form, *words)
    job = {"model": base, "adapters": files, "max_lora_rank": 8}
    return files, harness.run("sglang", job, folder)


RIGHT = ["parent", "embeddings", *FORMS, *(f"{name}: sglang" for name in PARENTS)]


@pytest.mark.parametrize("label", RIGHT)
def test_its_buffers_hold_what_was_written(loaded, row, label):
    files, answer = loaded

    assert answer.refused.get(label) is None
    wanted = models.updates(files[label])
    got = harness.furthest(answer, label, wanted)

    row(
        engine="sglang",
        version=answer.version,
        loaded=f"llama: {label}",
        difference=got,
        of="updates",
    )
    assert max(np.abs(x).max() for x in wanted.values()) > 0.5
    assert got < 1e-6


@pytest.mark.parametrize("label", UNEQUAL)
def test_unequal_ranks_are_refused(loaded, row, label):
    _, answer = loaded

    refused = answer.refused[label]
    row(
        engine="sglang",
        version=answer.version,
        loaded=f"llama: {label}",
        refused=refused.splitlines()[0],
    )
    assert "Sizes of tensors must match" in refused


@pytest.mark.parametrize("name", ["rslora", "patterns"])
def test_parents_whose_scale_it_does_not_read_are_wrong(loaded, name):
    files, answer = loaded

    assert harness.furthest(answer, name, models.updates(files[name])) > 0.1
    assert (
        harness.furthest(answer, name, models.updates(files[name], rule="global"))
        < 1e-6
    )
