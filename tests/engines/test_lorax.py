"""Tests of LoRAX's own loading of adapters, type by type, against `s B A`."""

import pytest

from tests.engines import harness, loading, models

FORMS = {
    "lorax": ("--gamma", "0.4", "--for", "lorax"),
    "few": ("--gamma", "0.2", "--min-rank", "1", "--max-rank", "6", "--for", "lorax"),
    "padded": ("--gamma", "0.4", "--profile", "padded", "--max-rank", "7"),
    "gone": ("--gamma", "0.08", "--max-rank", "6"),
}
RIGHT = ("parent", "lorax", "few")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lorax")
    return loading.run("lorax", *loading.written(folder, FORMS), folder)


@pytest.mark.parametrize("label", RIGHT)
def test_it_holds_what_was_written(loaded, row, label):
    loading.check_held(loaded, label, row)


def test_of_a_rank_that_it_pads_all_types_but_the_first_are_scaled_by_the_padded(
    loaded,
):
    files, answer = loaded.files, loaded.answer

    wanted = models.updates(files["padded"])
    held = harness.loaded(answer, "padded")
    for path, x in wanted.items():
        share = 1 if path.endswith("q_proj") else 7 / 8
        assert held[path] == pytest.approx(share * x, abs=1e-6)


def test_a_type_that_is_not_in_all_layers_is_left_out_without_a_word(loaded):
    files, answer = loaded.files, loaded.answer

    gone = models.updates(files["gone"]).keys() - harness.loaded(answer, "gone").keys()
    assert gone
    assert "gone" not in answer.refused
