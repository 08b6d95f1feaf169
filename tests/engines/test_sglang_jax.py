"""SGLang-JAX's own config and pool of buffers, against `s B A`."""

import pytest

from tests.engines import harness, models

ALL = models.ATTENTION + models.MLP
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
    """Load all files in one process."""
    folder = tmp_path_factory.mktemp("sglang_jax")
    base = models.make("llama", folder / "base")
    shapes = models.linear_shapes(base, ALL)
    files = {"parent": models.adapter(folder / "parent", shapes)}
    for form, words in FORMS.items():
        files[form] = harness.compress(files["parent"], folder / form, *words)
    shapes = models.linear_shapes(base, (*ALL, "lm_head"))
    files["lm_head"] = models.adapter(folder / "head", shapes)
    job = {"model": base, "adapters": files, "max_lora_rank": 8}
    return files, harness.run("sglang_jax", job, folder)


@pytest.mark.parametrize("label", RIGHT)
def test_it_holds_what_was_written(loaded, row, label):
    files, answer = loaded

    assert answer.refused.get(label) is None
    got = harness.furthest(answer, label, models.updates(files[label]))

    row(
        engine="sglang_jax",
        version=answer.version,
        loaded=f"llama: {label}",
        difference=got,
        of="updates",
    )
    assert got < 1e-6


def test_one_alpha_over_each_rank_is_not_its_rule(loaded):
    files, answer = loaded

    label = "per-tensor-alpha"
    assert harness.furthest(answer, label, models.updates(files[label])) > 0.1
    by_r = models.updates(files[label], rule="global")
    assert harness.furthest(answer, label, by_r) < 1e-6


def test_the_head_is_refused(loaded, row):
    _, answer = loaded

    refused = answer.refused["lm_head"]
    row(
        engine="sglang_jax",
        version=answer.version,
        loaded="llama: lm_head",
        refused=refused.splitlines()[0],
    )
    assert "Not supported yet" in refused
