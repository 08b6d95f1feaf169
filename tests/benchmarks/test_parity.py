"""Tests of the parity table: the saved rows cover all models, and the script runs."""

import importlib
import pathlib

import pytest

for name in ("peft", "torch", "transformers"):
    pytest.importorskip(name)

SAVED = pathlib.Path(__file__).parent / "results/parity.json"


@pytest.fixture
def parity():
    # Imported here, since the import hook only checks modules imported after it.
    return importlib.import_module("tests.benchmarks.parity")


def test_what_was_saved_is_of_all_models_and_within_the_bound(parity):
    rows = parity.saved(SAVED)

    assert list(rows) == [x.name for x in parity.torch_backbones.FAMILIES]
    for row in rows.values():
        assert 0 < max(row.base, row.adapter, row.child) < 1e-4 < row.largest


def test_the_table_on_the_page_is_that_of_the_saved_rows(parity):
    page = (SAVED.parents[3] / "docs/models.md").read_text()

    shown = page.partition("<!-- parity -->")[2].partition("<!-- /parity -->")[0]

    assert shown.strip() == parity.markdown(parity.saved(SAVED).values()).strip()


def test_one_model_is_measured_and_shown(parity):
    import transformers

    def build():
        config = transformers.RobertaConfig(
            vocab_size=23,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=56,
            max_position_embeddings=60,
            type_vocab_size=1,
            num_labels=3,
            initializer_range=0.2,
        )
        return transformers.RobertaForSequenceClassification(config)

    family = next(x for x in parity.torch_backbones.FAMILIES if "RoBERTa" in x.name)
    inputs = parity.torch_backbones._sentences
    small = family._replace(build=build, layers=2, inputs=lambda: inputs(23))

    row = parity.measured(small)

    assert max(row.base, row.adapter, row.child) < 1e-4
    assert row.largest > 0.1
    assert f"| RoBERTa-Base | {row.shape} | {row.base:.1e} |" in parity.markdown([row])
