"""The paper's comparisons, from end to end on random tiny models and data."""

import dataclasses
import json

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("PARA_DATA", "PARA_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["paper/vision", "paper/glue"])
def test_a_preset_is_the_paper_s_protocol(name):
    from train.presets import PLANS

    plan = PLANS[name]

    by_name = {x.name: x.config for x in plan.entries}
    assert by_name.keys() >= {"adalora", "sora", "dora", "gora", "dylora"}
    assert [by_name[f"lora-{x}"].rank for x in (16, 8, 4, 2, 1)] == [16, 8, 4, 2, 1]
    for config in by_name.values():
        assert getattr(config, "scale", 2) == 2
    for task in plan.tasks:
        run = plan.settings_of(task)
        run.check()
        assert (run.task, run.batch, run.clip, run.warmup) == (task, 32, 1.0, 0.06)
        assert run.weight_decay == 0.01
        assert run.steps == (1500 if task in ("flowers", "pets", "mrpc") else 3000)
    assert 5e-5 in plan.rates
    assert {*plan.search_seeds, *plan.other_seeds} == {0, 1, 2}
    assert 4 in plan.cuts  # Of 16: gamma is 0.25.


@pytest.mark.parametrize("module", ["vision", "glue", "commonsense", "math"])
def test_a_preset_says_its_command_its_cost_and_the_paper_s_scores(module):
    import importlib

    said = importlib.import_module(f"train.presets.paper.{module}").__doc__

    for words in (f"--preset paper/{module}", "Cost"):
        assert words in said
    assert "(from a summary)" in said


@pytest.mark.parametrize("module", ["vision", "glue", "commonsense", "math"])
def test_a_preset_says_how_much_is_downloaded(module):
    import importlib
    import re

    from train import presets
    from train.data import sources

    preset = importlib.import_module(f"train.presets.paper.{module}")
    needs = presets.NEEDS[f"paper/{module}"]

    doc = " ".join(preset.__doc__.split())
    (said,) = re.findall(r"(\d+) (GB|MB) to download", doc)

    sizes = [needs.weights.size, *(sources.find(x).size or 0 for x in needs.data)]
    unit = {"GB": 1e9, "MB": 1e6}[said[1]]
    # Those of unknown size are questions, a few MB each.
    assert int(said[0]) * unit == pytest.approx(sum(sizes), rel=0.05)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("vision", "{runs} trainings of SigLIP2-Base, with {members} members each"),
        ("vision", "{children} children of each of {parents} parents"),
        ("glue", "{runs} trainings of RoBERTa-base on 128 tokens, with {members} mem"),
        ("commonsense", "{trained} trainings of Gemma3-4B, of {steps} steps"),
        ("commonsense", "22,000 answers from each of {models} models"),
        ("math", "{trained} trainings of Gemma3-4B, of {steps} steps"),
        ("math", "6,300 answers of up to 1,024 tokens from each of {models} models"),
    ],
)
def test_a_preset_counts_what_its_plan_makes(module, words):
    import importlib

    preset = importlib.import_module(f"train.presets.paper.{module}")
    plan = preset.PLAN
    runs = len(plan.entries) * len(plan.tasks)
    seeds = len(plan.search_seeds) + len(plan.other_seeds)
    members = len(plan.search_seeds) * len(plan.rates) + len(plan.other_seeds)
    children = len({*plan.pruners, "local"}) * len(plan.cuts)
    children += len(plan.energies) + len(plan.dropped)
    parents = seeds * len(plan.tasks)
    assert (plan.shares, plan.outer, plan.retuned) == ((), (), ())

    expected = words.format(
        runs=runs,
        members={5: "five"}[members],
        trained=runs * members,
        steps=plan.settings.steps,
        children=children,
        parents=parents,
        models=runs * seeds + children * parents,
    )

    assert expected in " ".join(preset.__doc__.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "task", "modules"),
    [("paper/vision", "eurosat", 12), ("paper/glue", "mrpc", 12)],
)
def test_a_preset_runs_goes_on_and_is_drawn(
    preset, task, modules, tmp_path, monkeypatch
):
    from train import __main__ as main
    from train.experiments import store
    from train.experiments.rows import Row

    out, results = str(tmp_path / "out"), str(tmp_path / "results")
    words = ["grid", "--preset", preset, "--tiny", "--out", out, "--tasks", task]

    main.main([*words, "--methods", "lora-16", "lora-4"])
    made = {x: x.stat().st_mtime_ns for x in (tmp_path / "out").rglob("*-*.json")}
    assert len(made) == 4
    main.main([*words, "--methods", "lora-16", "lora-4", "gora"])
    assert {x: x.stat().st_mtime_ns for x in made} == made
    main.main(["collect", "--source", out, "--out", results])

    trained = store.read(tmp_path / "results" / "trained.json", Row)
    assert {x.config for x in trained.rows} == {"lora-16", "lora-4", "gora"}
    assert {x.modules for x in trained.rows} == {modules}
    measures = {name for x in trained.rows for name in x.measures or ()}
    assert measures == ({"f1"} if task == "mrpc" else set())
    hashes = {x["backbone"] for x in trained.configs.values()}
    assert [len(x) for x in hashes] == [64]
    children = store.read(tmp_path / "results" / "children.json", Row).rows
    found = {(x.method, x.policy) for x in children if x.seed == 1}
    assert found == {
        *((x, f"rank {y}") for x in ("para", "local", "fisher") for y in (4, 1)),
        ("para", "epsilon 0.999"),
        ("drop-top", "drop 1"),
    }
    main.main(["table", "all", "--folder", results])
    main.main(["figure", "all", "--folder", results, "--out", str(tmp_path / "f")])
    assert len(list((tmp_path / "f").glob("*.png"))) == 8  # Not scores, not retuned.


@pytest.mark.slow
def test_tiny_sentences_can_be_learned(tmp_path):
    from train.grid import plan, training, work
    from train.presets import PLANS
    from train.presets.paper import tiny

    shrunk = tiny.shrunk(PLANS["paper/glue"], tmp_path)
    longer = dataclasses.replace(shrunk.settings, steps=40, batch=8)
    shrunk = dataclasses.replace(shrunk, settings=longer, rates=(0.003,))
    (place,) = work.load(("cola",), shrunk)

    trained = training.train(place, plan.PARENT.config)

    for row in training.rows(place, trained, plan.PARENT):
        assert row.accuracy > 0.8
        assert row.measures["matthews"] > 0.6


@pytest.mark.slow
def test_another_backbone_is_refused_where_results_are(tmp_path):
    from train.grid import training, work
    from train.presets import PLANS
    from train.presets.paper import tiny

    plan = tiny.shrunk(PLANS["paper/glue"], tmp_path)
    (place,) = work.load(("cola",), plan)
    assert isinstance(place, training.Place)
    folder = work.Folder(
        path=tmp_path / "out", command="", commit="", plan=plan, say=lambda line: None
    )
    work.run(folder, ["cola"], ["lora-1"])
    (weights,) = (tmp_path / "tiny" / "weights" / "FacebookAI").rglob("*.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    moved = tmp_path / "moved" / "FacebookAI" / "roberta-base"
    moved.mkdir(parents=True)
    for file in weights.parent.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    (moved / weights.name).write_bytes(changed)

    folders = dataclasses.replace(plan.folders, weights=tmp_path / "moved")
    other = dataclasses.replace(folder, plan=dataclasses.replace(plan, folders=folders))

    with pytest.raises(ValueError, match="was made with backbone"):
        work.run(other, ["cola"], ["lora-1"])


def test_the_model_of_a_comparison_is_in_its_results(tmp_path, monkeypatch, capsys):
    from train import __main__ as main
    from train.experiments import store
    from train.experiments.rows import Row

    mpnet = "sentence-transformers/all-mpnet-base-v2"
    out = str(tmp_path / "out")
    words = ["grid", "--preset", "paper/glue", "--tiny", "--out", out]
    words += ["--tasks", "mrpc", "--methods", "lora-1"]

    main.main([*words, "--model", mpnet])

    found = store.read(tmp_path / "out" / "trained" / "lora-1-mrpc.json", Row)
    assert found.configs["lora-1"]["model"] == mpnet
    assert found.command.endswith(f"--preset paper/glue --model {mpnet} --tiny")
    assert all(x.modules == 12 for x in found.rows)
    with pytest.raises(SystemExit):
        main.main(words)
    assert f"was made with model {mpnet}, and  is asked" in capsys.readouterr().err


def test_results_from_before_there_was_a_choice_of_models_are_kept(tmp_path):
    from train.grid import plan, work
    from train.presets import PLANS

    settings = PLANS["paper/glue"].settings_of("mrpc")
    (entry,) = [x for x in plan.ENTRIES if x.name == "lora-1"]
    old = work._described(settings, entry.config)
    del old["model"]
    file = tmp_path / "lora-1-mrpc.json"
    row = {"task": "mrpc", "method": "lora", "policy": "rank 1", "seed": 0}
    row |= {"rank_total": 1, "modules": 1, "params": 1, "learning_rate": 0.1}
    row |= {"config": "lora-1", "steps": 3}
    head = {"command": "", "commit": "", "versions": {}, "device": ""}
    whole = {**head, "configs": {"lora-1": old}, "rows": [row]}
    file.write_text(json.dumps(whole))

    work._check(file, settings, entry)

    with pytest.raises(ValueError, match="was made with backbone"):
        work._check(file, dataclasses.replace(settings, backbone="1"), entry)


def test_configurations_of_several_tasks_keep_what_they_share(tmp_path):
    from train.experiments import store
    from train.experiments.rows import Row
    from train.grid import work

    for task, steps in (("cola", 3000), ("mrpc", 1500)):
        row = Row(
            task=task,
            method="lora",
            policy="rank 4",
            seed=0,
            rank_total=4,
            modules=1,
            params=9,
            learning_rate=0.1,
            config="lora-4",
            steps=steps,
        )
        part = store.Results(
            command="",
            commit="",
            versions={},
            device="",
            configs={"lora-4": {"steps": steps, "batch": 32}},
            rows=[row],
        )
        store.write(tmp_path / "trained" / f"lora-4-{task}.json", part)

    work.collect(tmp_path, tmp_path / "results")

    joined = json.loads((tmp_path / "results" / "trained.json").read_text())
    assert joined["configs"] == {"lora-4": {"batch": 32}}
    assert [x["steps"] for x in joined["rows"]] == [3000, 1500]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "task", "sets"),
    [
        (
            "paper/commonsense",
            "commonsense",
            "boolq piqa siqa hellaswag winogrande arc-e arc-c obqa",
        ),
        ("paper/math", "mathematics", "gsm8k math"),
    ],
)
def test_answers_that_are_written_go_from_end_to_end(
    preset, task, sets, tmp_path, capsys
):
    from train import __main__ as main
    from train.experiments import store
    from train.experiments.rows import Row, Spectrum

    out, results = str(tmp_path / "out"), str(tmp_path / "results")
    words = ["grid", "--preset", preset, "--tiny", "--out", out, "--methods", "lora-16"]

    main.main([*words, "--rates", "0.03", "0.003"])
    main.main(["collect", "--source", out, "--out", results])

    def read(name, kind=Row):
        return store.read(tmp_path / "results" / f"{name}.json", kind).rows

    trained = read("trained")
    (lost,) = [x for x in trained if x.accuracy is None]
    assert (lost.task, lost.seed) == (task, 0)
    tested = [x for x in trained if x is not lost]
    assert [(x.seed, x.task) for x in tested] == [
        (seed, name) for seed in (0, 1) for name in sets.split()
    ]
    assert {x.learning_rate for x in tested} == {0.03, 0.003} - {lost.learning_rate}
    children = read("children")
    assert len(children) == 2 * 4 * len(sets.split())
    assert {(x.task, x.method, x.policy, x.seed) for x in children} == {
        (name, x, f"rank {y}", seed)
        for name in sets.split()
        for x in ("para", "local")
        for y in (4, 1)
        for seed in (0, 1)
    }
    assert all(x.accuracy is not None for x in children)
    assert {x.task for x in read("spectra", Spectrum)} == {task}
    capsys.readouterr()
    main.main(["table", "all", "--folder", results])
    shown = [x.split() for x in capsys.readouterr().out.splitlines()]
    assert ["method", *sets.split(), "mean", "rank", "params"] in shown
    assert ["method", task, "tried"] in shown
    _, stability = [x for x in shown if x[:1] == [task]]  # Of the spectra's tables.
    assert stability[1] == "1"


@pytest.mark.slow
def test_the_cost_of_a_step_is_that_of_a_preset(tmp_path, monkeypatch):
    import itertools
    import types

    from train import __main__ as main
    from train.experiments import store
    from train.experiments.rows import Cost
    from train.grid import cost

    monkeypatch.chdir(tmp_path)
    ticks = types.SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(cost, "time", ticks)  # Every call takes a second.
    preset = ["--preset", "paper/vision", "--tiny"]

    main.main(["cost", *preset, "--methods", "lora-4", "gora"])

    place = tmp_path / "runs" / "paper" / "vision" / "cost"
    assert {x.stem for x in place.iterdir()} == {"lora-4", "gora"}
    for file in place.iterdir():
        found = store.read(file, Cost)
        assert found.command == "python -m train cost --preset paper/vision --tiny"
        (row,) = found.rows
        assert (row.method, row.policy) == (file.stem.partition("-")[0], "rank 4")
        # All the steps of a run so small.
        assert row.step_seconds == pytest.approx(1 / 12, rel=1e-5)
    with pytest.raises(SystemExit):
        main.main(["cost", "--preset", "paper/visoin"])


@pytest.mark.slow
def test_a_comparison_ends_with_its_tables_and_figures(tmp_path, monkeypatch, capsys):
    from train import __main__ as main, presets

    plan = presets.PLANS["paper/glue"]
    some = tuple(x for x in plan.entries if x.name in ("lora-16", "lora-4"))
    less = dataclasses.replace(plan, tasks=("mrpc",), entries=some)
    monkeypatch.setitem(presets.PLANS, "paper/glue", less)
    words = ["grid", "--preset", "paper/glue", "--tiny", "--out", str(tmp_path)]

    main.main([*words, "--methods", "lora-16"])
    assert "The comparison is not complete." in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    main.main(words)

    shown = capsys.readouterr().out
    assert "trained: " in shown
    assert "Table A: accuracy at an average rank of 4" in shown
    drawn = {x.stem for x in (tmp_path / "figures").glob("*.png")}
    assert {"ranks", "spectra", "rank-maps", "methods"} <= drawn
