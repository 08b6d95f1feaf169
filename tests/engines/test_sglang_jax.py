"""Tests of SGLang-JAX's own config and buffer pool, against `s B A`."""

import pytest

from tests.engines import harness, loading, models

FORMS = {
    "sglang-jax": ("--gamma", "0.4", "--for", "sglang-jax"),
    "padded": ("--gamma", "0.4", "--profile", "padded"),
    "ragged": ("--gamma", "0.4"),
    "uniform-by-type": ("--gamma", "0.4", "--profile", "uniform-by-type"),
    "few": ("--gamma", "0.08", "--for", "sglang-jax"),
    "few ragged": ("--gamma", "0.08"),
    "per-tensor-alpha": ("--gamma", "0.4", "--profile", "per-tensor-alpha"),
}
RIGHT = ("parent", *(x for x in FORMS if x != "per-tensor-alpha"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sglang_jax")
    base, files = loading.written(folder, FORMS)
    shapes = loading.shapes(base, "lm_head")
    files["lm_head"] = models.adapter(folder / "head", shapes)
    return loading.run("sglang_jax", base, files, folder)


@pytest.mark.parametrize("label", RIGHT)
def test_it_holds_what_was_written(loaded, row, label):
    loading.check_held(loaded, label, row)


def test_one_alpha_over_each_rank_is_not_its_rule(loaded):
    files, answer = loaded.files, loaded.answer

    label = "per-tensor-alpha"
    assert harness.furthest(answer, label, models.updates(files[label])) > 0.1
    by_r = models.updates(files[label], rule="global")
    assert harness.furthest(answer, label, by_r) < 1e-6


def test_the_head_is_refused(loaded, row):
    loading.check_refused(loaded, "lm_head", row, match="Not supported yet")
