"""Test `--model` with a base model's folder, and what `para inspect` says of names."""

import json
import pathlib
import sys

import numpy as np
import pytest

import para_jax as para
from para_jax import cli

pytestmark = pytest.mark.user_defaults

FORMER = "vit/encoder/layer/0/attention/attention/query"


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """Write a PEFT folder `adapter`, and a model's folder `base`, in this folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = para.Adapter(a=rng.normal(size=(8, 2)), b=rng.normal(size=(2, 8)))
    para.save(para.Checkpoint(adapters={FORMER: x}), "adapter")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    return tmp_path / "adapter"


def failure(capsys, *words):
    assert cli.main(["convert", "adapter", "new", *words])
    assert not pathlib.Path("new").exists()
    return capsys.readouterr().err


def test_inspect_tells_former_names_and_what_to_do(adapter, capsys):
    assert not cli.main(["inspect", "adapter"])

    said = " ".join(capsys.readouterr().out.split())
    assert "is a name of before transformers 5.9" in said
    assert "For the new names: para convert SRC DST --model FOLDER" in said


def test_inspect_gives_them_as_json_too(adapter, capsys):
    assert not cli.main(["inspect", "adapter", "--json"])

    (note,) = json.loads(capsys.readouterr().out)["former_names"]
    assert FORMER in note


def test_a_model_that_is_missing_is_told_before_any_work(adapter, capsys):
    said = failure(capsys, "--model", "google/vit")

    assert "'google/vit' is missing: expected the folder of a model" in said


@pytest.mark.parametrize(
    ("flag", "value"), [("ecosystem", "tunix"), ("head-dim", "4"), ("layers", "2")]
)
def test_facts_of_jax_paths_do_not_go_with_a_folder(flag, value, adapter, capsys):
    said = failure(capsys, "--model", "base", f"--{flag}", value)

    assert f"--{flag} describes JAX paths, and 'base' is a model" in said


def test_jax_paths_do_not_come_from_a_folder(adapter, capsys):
    said = failure(capsys, "--model", "base", "--format", "orbax")

    assert "'base' has Hugging Face's names, and 'new' is to have JAX paths" in said


@pytest.mark.parametrize("missing", ["transformers", "torch"])
def test_a_missing_library_is_told_with_the_command(
    missing, adapter, capsys, monkeypatch
):
    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, missing, None)

    said = failure(capsys, "--model", "base")

    assert f"this needs {missing}: pip install torch transformers." in said
