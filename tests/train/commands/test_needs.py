import io
import json
import pathlib

import huggingface_hub
import jax
import pytest
import rich.console

from train.commands import check, needs
from train.data import sources


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """The caches of the hub and of its data sets are empty."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub")
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    monkeypatch.delenv("PARA_DATA", raising=False)
    monkeypatch.delenv("PARA_WEIGHTS", raising=False)


def model(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def sharded(folder, *shards):
    model(folder, "config.json", *shards)
    index = {
        "weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def weights(found):
    (finding,) = found
    assert finding.kind == "weights"
    return finding


def survey(repo, **more):
    return weights(
        needs.survey(needs.Needs(weights=needs.Weights(repo=str(repo), **more)))
    )


def test_a_folder_with_one_file_of_tensors_is_enough(tmp_path):
    folder = model(tmp_path / "m", "config.json", "model.safetensors")

    got = survey(folder)

    assert (got.there, got.name, got.download, got.command) == (True, "m", 0, "")
    got = survey(folder, files=("config.json", "tokenizer.json"))
    assert (got.there, got.note) == (False, f"tokenizer.json not in {folder}")


def test_a_folder_with_a_file_of_llama_cpp_is_enough(tmp_path):
    files = ("config.json", "tokenizer.json")
    folder = model(tmp_path / "m", "m-q4.gguf")

    got = survey(folder, files=files)

    assert (got.there, got.note) == (True, f"in {folder}")


def test_all_shards_of_an_index_are_needed(tmp_path):
    assert survey(sharded(tmp_path / "all", "1.safetensors", "2.safetensors")).there

    got = survey(sharded(tmp_path / "some", "1.safetensors"))

    assert not got.there
    assert got.note.startswith("2.safetensors not in")


def test_an_empty_folder_lacks_everything_and_downloads_nothing(tmp_path):
    got = survey(model(tmp_path / "m"), size=9)
    assert got.note.startswith("config.json, model.safetensors not in")
    assert (got.there, got.download) == (False, 0)


def cached(tmp_path, repo, *names):
    """Files as the hub's own library keeps them."""
    place = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    return model(place / "snapshots" / "abc", *names)


def test_a_repository_is_looked_for_in_the_hub_s_cache(tmp_path):
    got = survey("google/gemma-3-4b-it", size=8_600_000_000, remark="gated")
    assert not got.there
    assert got.note == "config.json, model.safetensors not in the hub's cache"
    assert got.remark == "gated"
    assert got.download == 8_600_000_000
    assert got.command == "hf download google/gemma-3-4b-it"

    sharded(cached(tmp_path, "google/gemma-3-4b-it"), "1.safetensors", "2.safetensors")
    got = survey("google/gemma-3-4b-it", size=8_600_000_000)
    assert (got.there, got.name, got.download) == (True, "gemma-3-4b-it", 0)


def test_data_sets_are_there_or_would_be_downloaded():
    packages, first, piqa = needs.survey(needs.Needs(data=("cola", "piqa")))

    assert packages.there
    assert (first.name, first.there, first.download) == ("cola", False, 326_000)
    assert (piqa.there, piqa.download) == (False, None)
    assert piqa.command.endswith("--local-dir DATA/ybisk/piqa")


def test_sets_of_one_repository_are_brought_by_one_command():
    found = needs.survey(needs.Needs(data=("cola", "mnli", "arc-e", "arc-c")))
    lines = check.summary(found)
    assert len([x for x in lines if x.startswith("    hf download")]) == 2


def cola(data):
    """The files of a configuration, empty: their rows are not read."""
    folder = data / "nyu-mll" / "glue"
    model(folder / "cola", "train-0.parquet", "validation-0.parquet")
    lines = ["---", "configs:", "- config_name: cola", "  data_files:"]
    for split in ("train", "validation"):
        lines += [f"  - split: {split}", f"    path: cola/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def test_a_folder_of_data_sets_is_the_only_place_that_is_looked_at(tmp_path):
    cola(tmp_path / "data")

    _, there, piqa = needs.survey(
        needs.Needs(data=("cola", "piqa")), data=tmp_path / "data"
    )

    assert there.there
    assert (piqa.there, piqa.download) == (False, 0)
    assert piqa.note == f"not in {tmp_path / 'data' / 'ybisk' / 'piqa'}"
    command = " --revision refs/convert/parquet --local-dir "
    assert piqa.command.endswith(f"{command}{tmp_path / 'data' / 'ybisk' / 'piqa'}")


def test_an_empty_folder_holds_none_of_the_sets_that_it_is_for(tmp_path):
    from train import presets

    glue = tmp_path / "nyu-mll" / "glue"
    glue.mkdir(parents=True)

    found = needs.survey(presets.NEEDS["paper/glue"], data=tmp_path)

    notes = [x.note for x in found if x.kind == "data"]
    assert len(notes) == 5
    assert notes[1] == f"no files of sst2/train, sst2/validation in {glue}"
    assert not any(x.there for x in found if x.kind == "data")


def test_missing_packages_are_named(monkeypatch):
    find = needs.importlib.util.find_spec
    monkeypatch.setattr(
        needs.importlib.util,
        "find_spec",
        lambda name: None if name in ("datasets", "PIL") else find(name),
    )

    packages, pets = needs.survey(needs.Needs(data=("pets",)))

    assert (packages.there, packages.note) == (False, "missing: datasets, PIL")
    assert packages.command == "pip install 'para-jax[train]'"
    assert not pets.there


@pytest.mark.parametrize(
    ("wanted", "got", "there", "note"),
    [
        (3_000_000_000, 4_000_000_000, True, "3.0 GB needed, 4.0 GB for JAX"),
        (5_000_000_000, 4_000_000_000, False, "5.0 GB needed, 4.0 GB for JAX"),
        (5_000_000, None, True, "5.0 MB needed; the device does not say"),
    ],
)
def test_the_device_s_memory_is_compared(monkeypatch, wanted, got, there, note):
    monkeypatch.setattr(needs, "device_bytes", lambda: got)

    (memory,) = needs.survey(needs.Needs(memory_bytes=wanted))

    assert (memory.there, memory.note) == (there, note)
    assert memory.name == jax.devices()[0].device_kind


def test_a_cpu_has_the_machine_s_memory():
    memory = pathlib.Path("/proc/meminfo").read_text()
    total = int(memory.split()[1]) * 1024  # MemTotal: 1234 kB
    assert needs.device_bytes() == pytest.approx(total, rel=0.02)


def finding(name, **more):
    settings = {"kind": "data", "there": True, "note": "", **more}
    return needs.Finding(name=name, **settings)


def test_the_summary_says_what_would_be_downloaded():
    found = [
        finding("a", download=7_000_000),  # It is there: it counts for nothing.
        finding(
            "b",
            there=False,
            download=1_500_000_000,
            command="hf download b",
            note="not there",
            remark="no licence stated",
        ),
        finding("c", there=False, download=None, command="hf download c"),
        finding("cpu", kind="memory", there=False, note="too small"),
    ]

    *first, download = check.summary(found)[:-4]

    # The remark is in the table.
    assert first == [
        "3 of 4 missing:",
        "    b: not there",
        "    c",
        "    cpu: too small",
    ]
    assert download.startswith("A run would download 1.5 GB, and 1 of unknown size to ")
    assert download.endswith(" are free.")
    assert check.summary(found)[-4:] == [
        "To bring it here beforehand:",
        "    hf download b",
        "    hf download c",
        "and set PARA_DATA to the folder DATA.",
    ]
    assert check.summary(found[:1]) == ["All is there."]
    assert check.summary(found[-1:]) == ["1 of 1 missing:", "    cpu: too small"]


def test_the_table_fits_80_columns():
    found = needs.survey(
        needs.Needs(
            weights=needs.Weights(repo="google/gemma-3-4b-it", size=8_600_000_000),
            data=tuple(sources.SOURCES),
            memory_bytes=40_000_000_000,
        )
    )
    console = rich.console.Console(file=io.StringIO(), width=80)

    console.print(check.table(found, title="paper/commonsense"))

    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "no licence stated" in " ".join(lines)
    (row,) = (line.split() for line in lines if " food " in line)
    assert row[:5] == ["data", "food", "no", "5.1", "GB"]
    (row,) = (line.split() for line in lines if " piqa " in line)
    assert row[:4] == ["data", "piqa", "no", "unknown"]


def test_the_command_ends_well_only_if_all_is_there(tmp_path, capsys):
    ask = check.command(
        {"paper/glue": needs.Needs(weights=needs.Weights(repo="a/b"), data=("cola",))}
    )
    with pytest.raises(SystemExit) as ended:
        ask("paper/glue")
    assert ended.value.code == 1
    assert "2 of 3 missing:\n    b: config.json" in capsys.readouterr().out

    cola(tmp_path / "data")
    model(tmp_path / "m" / "a" / "b", "config.json", "model.safetensors")
    ask("paper/glue", data=tmp_path / "data", weights=tmp_path / "m")
    assert "All is there." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        ask("paper/glue", data=tmp_path / "data", weights=tmp_path / "none")
    said, place = capsys.readouterr().out, tmp_path / "none" / "a" / "b"
    assert f"model.safetensors not in {place}" in said
    assert f"    hf download a/b --local-dir {place}" in said


def test_another_model_is_looked_for_in_place_of_the_preset_s(tmp_path, capsys):
    from train import presets

    ask = check.command(presets.NEEDS, presets.READY)
    folder = model(tmp_path / "a" / "b", "model.safetensors", "tokenizer.json")
    for kind, said in (
        ("mpnet", f"b yes in {folder}"),
        ("bert", "is of the type 'bert', expected roberta or mpnet"),
    ):
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))

        with pytest.raises(SystemExit):  # The sets are not there.
            ask("paper/glue", model="a/b", weights=tmp_path, data=tmp_path)

        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert said.replace(" ", "") in shown.replace(" ", "")
        # Neither its size nor the memory of its training is known.
        assert "roberta-base" not in shown
        assert "memory" not in shown
    with pytest.raises(SystemExit):
        ask("paper/glue", model="c/d", weights=tmp_path, data=tmp_path)
    assert f"hf download c/d --local-dir {tmp_path / 'c/d'}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'movie' has a model of its own, and --model"):
        ask("movie", model="a/b")


def test_the_preset_s_own_model_by_name_has_its_own_needs():
    from train import presets

    for wanted in presets.NEEDS.values():
        assert needs.with_model(wanted, wanted.weights.repo) == wanted
        assert needs.with_model(wanted, "") == wanted
        other = needs.with_model(wanted, "a/b")
        assert (other.weights.repo, other.data) == ("a/b", wanted.data)
        assert other.weights.files == wanted.weights.files


def test_an_unknown_preset_is_refused():
    ask = check.command({"paper/math": needs.Needs()})
    with pytest.raises(ValueError, match="needs of 'paper/maths', expected paper/math"):
        ask("paper/maths")


def test_what_downloads_nothing_says_so(capsys):
    from train import __main__, presets

    for name in ("vision", "problems", "movie"):
        __main__.main(["check", name])
        assert f"{name} downloads nothing" in capsys.readouterr().out
    assert not {x for x in presets.READY if x.startswith("paper/")}


def test_the_command_line_takes_its_arguments(capsys):
    tyro = pytest.importorskip("tyro")
    ask = check.command({"tiny": needs.Needs()})

    tyro.cli(ask, args=["tiny", "--data", "folder"])

    assert "All is there." in capsys.readouterr().out


def test_a_folder_of_models_may_be_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PARA_WEIGHTS", str(tmp_path))
    model(tmp_path / "a" / "b", "config.json", "model.safetensors")

    got = survey("a/b")

    assert (got.there, got.note) == (True, f"in {tmp_path / 'a' / 'b'}")


def test_every_comparison_of_the_paper_says_what_it_needs():
    from train import presets

    paper = {name for name in presets.PLANS if name.startswith("paper/")}

    assert presets.NEEDS.keys() == {*paper, "choose", "glue"}
    for name in paper:
        if name in ("paper/vision", "paper/glue"):
            assert presets.NEEDS[name].data == presets.PLANS[name].tasks
        assert presets.NEEDS[name].weights is not None
