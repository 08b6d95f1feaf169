"""LMDeploy's own loading of adapters (its engine in PyTorch), against `s B A`."""

import numpy as np
import pytest

from tests.engines import harness, models

ALL = models.ATTENTION + models.MLP
FORMS = {
    "padded": ("--gamma", "0.4", "--profile", "padded"),
    "ragged": (
        "--gamma",
        "0.4",
    ),
    "few": ("--gamma", "0.08", "--profile", "padded"),
}
RIGHT = ("parent", "padded", "few")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Load all files in one process."""
    folder = tmp_path_factory.mktemp("lmdeploy")
    base = models.make("llama", folder / "base")
    shapes = models.linear_shapes(base, ALL)
    files = {"parent": models.adapter(folder / "parent", shapes)}
    for form, words in FORMS.items():
        files[form] = harness.compress(files["parent"], folder / form, *words)
    ones = {"ranks": {"q_proj": 1}, "config": {"rank_pattern": {"q_proj": 1}}}
    files["ones"] = models.adapter(folder / "ones", shapes, **ones)
    words = ("--gamma", "1", "--profile", "ragged")
    files["ones: ragged"] = harness.compress(files["ones"], folder / "one", *words)
    some = {path: x for path, x in shapes.items() if ".2." not in path}
    files["two layers"] = models.adapter(folder / "two", some)
    job = {"model": base, "adapters": files, "max_lora_rank": 8}
    return files, harness.run("lmdeploy", job, folder)


@pytest.mark.parametrize("label", RIGHT)
def test_it_holds_what_was_written(loaded, row, label):
    files, answer = loaded

    assert answer.refused.get(label) is None
    got = harness.furthest(answer, label, models.updates(files[label]))

    row(
        engine="lmdeploy",
        version=answer.version,
        loaded=f"llama: {label}",
        difference=got,
        of="updates",
    )
    assert got < 1e-6


def test_unequal_ranks_are_refused(loaded, row):
    _, answer = loaded

    refused = answer.refused["ragged"]
    row(
        engine="lmdeploy",
        version=answer.version,
        loaded="llama: ragged",
        refused=refused.splitlines()[0],
    )
    assert "must match the size of tensor" in refused


def test_a_module_of_rank_1_beside_others_is_repeated_for_each_of_their_ranks(loaded):
    files, answer = loaded

    held = harness.loaded(answer, "ones: ragged")
    for path, x in models.updates(files["ones: ragged"]).items():
        times = 8 if path.endswith("q_proj") else 1
        assert held[path] == pytest.approx(times * x, abs=1e-5)


def test_what_a_layer_lacks_is_memory_that_nothing_was_written_to(loaded):
    _, answer = loaded

    held = harness.loaded(answer, "two layers")
    empty = {path for path, x in held.items() if np.isnan(x).any()}
    assert empty == {path for path in held if ".layers.2." in path}
