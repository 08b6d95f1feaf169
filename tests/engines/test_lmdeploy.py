"""Tests of LMDeploy's own loading of adapters (its PyTorch engine), against `s B A`."""

import numpy as np
import pytest

from tests.engines import harness, loading, models

FORMS = {
    "lmdeploy": ("--gamma", "0.4", "--for", "lmdeploy"),
    "padded": ("--gamma", "0.4", "--profile", "padded"),
    "ragged": ("--gamma", "0.4"),
    "few": ("--gamma", "0.08", "--profile", "padded"),
    "few lmdeploy": ("--gamma", "0.08", "--for", "lmdeploy"),
}
RIGHT = ("parent", "expression: lmdeploy", *(x for x in FORMS if x != "ragged"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmdeploy")
    base, files = loading.written(folder, FORMS)
    shapes = loading.shapes(base)
    ones = {"ranks": {"q_proj": 1}, "config": {"rank_pattern": {"q_proj": 1}}}
    files["ones"] = models.adapter(folder / "ones", shapes, **ones)
    words = ("--gamma", "1", "--profile", "ragged")
    files["ones: ragged"] = harness.compress(files["ones"], folder / "one", *words)
    expression = {"target_modules": r".*\.[a-z]+_proj"}
    files["expression"] = models.adapter(folder / "all", shapes, config=expression)
    child, words = folder / "all child", FORMS["lmdeploy"]
    files["expression: lmdeploy"] = harness.compress(files["expression"], child, *words)
    some = {path: x for path, x in shapes.items() if ".2." not in path}
    files["two layers"] = models.adapter(folder / "two", some)
    return loading.run("lmdeploy", base, files, folder)


@pytest.mark.parametrize("label", RIGHT)
def test_it_holds_what_was_written(loaded, row, label):
    loading.check_held(loaded, label, row)


def test_unequal_ranks_are_refused(loaded, row):
    loading.check_refused(loaded, "ragged", row, match="must match the size of tensor")


def test_an_expression_for_modules_is_refused(loaded, row):
    loading.check_refused(loaded, "expression", row, match="KeyError")


def test_a_module_of_rank_1_beside_others_is_repeated_for_each_of_their_ranks(loaded):
    files, answer = loaded.files, loaded.answer

    held = harness.loaded(answer, "ones: ragged")
    for path, x in models.updates(files["ones: ragged"]).items():
        times = 8 if path.endswith("q_proj") else 1
        assert held[path] == pytest.approx(times * x, abs=1e-5)


def test_what_a_layer_lacks_is_memory_that_nothing_was_written_to(loaded):
    held = harness.loaded(loaded.answer, "two layers")
    empty = {path for path, x in held.items() if np.isnan(x).any()}
    assert empty == {path for path in held if ".layers.2." in path}


def test_its_kernel_is_compiled_for_16_and_for_powers_of_two_above(loaded):
    ranks = loaded.answer.facts["ranks"]

    wrong = {rank for rank, why in ranks.items() if why}
    assert wrong == {"17", "24"}
    assert {ranks[x] for x in wrong} == {"arange's range must be a power of 2"}
