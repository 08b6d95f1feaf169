"""Tests of SGLang's own loading: config, adapter and buffer pool, against `s B A`."""

import pytest

from tests.engines import harness, loading, models

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
    "rslora": {"config": {"use_rslora": True}},
    "patterns": {"config": {"alpha_pattern": {"down_proj": 12, "q_proj": 24}}},
    "embeddings": {},
}
RIGHT = (
    "parent",
    "embeddings",
    *FORMS,
    *(f"{name}: sglang" for name in ("parent", *PARENTS)),
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sglang")
    base, files = loading.written(folder, FORMS | UNEQUAL)
    for name, options in PARENTS.items():
        more = ("embed_tokens", "lm_head") if name == "embeddings" else ()
        shapes = loading.shapes(base, *more)
        files[name] = models.adapter(folder / name, shapes, **options)
    for name in ("parent", *PARENTS):
        child, words = folder / f"{name} child", FORMS["sglang"]
        files[f"{name}: sglang"] = harness.compress(files[name], child, *words)
    return loading.run("sglang", base, files, folder)


@pytest.mark.parametrize("label", RIGHT)
def test_its_buffers_hold_what_was_written(loaded, row, label):
    loading.check_held(loaded, label, row)


@pytest.mark.parametrize("label", UNEQUAL)
def test_unequal_ranks_are_refused(loaded, row, label):
    loading.check_refused(loaded, label, row, match="Sizes of tensors must match")


@pytest.mark.parametrize("name", ["rslora", "patterns"])
def test_parents_whose_scale_it_does_not_read_are_wrong(loaded, name):
    files, answer = loaded.files, loaded.answer

    assert harness.furthest(answer, name, models.updates(files[name])) > 0.1
    assert (
        harness.furthest(answer, name, models.updates(files[name], rule="global"))
        < 1e-6
    )
