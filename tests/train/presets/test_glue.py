"""The comparison of scores on sentences, from end to end on tiny models and data."""

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("PARA_DATA", "PARA_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_every_score_is_compared_on_every_task(tmp_path):
    from train import __main__ as main
    from train.experiments import store
    from train.experiments.rows import Row
    from train.presets import glue

    out, results = str(tmp_path / "out"), str(tmp_path / "results")
    words = ["grid", "--preset", "glue", "--tiny", "--out", out]

    main.main([*words, "--methods", "lora-16"])
    main.main(["collect", "--source", out, "--out", results])
    main.main(["table", "all", "--folder", results])

    trained = store.read(tmp_path / "results" / "trained.json", Row)
    assert {(x.task, x.seed) for x in trained.rows} == {
        (task, seed) for task in glue.PLAN.tasks for seed in (0, 1)
    }
    assert {x["model"] for x in trained.configs.values()} == {
        "sentence-transformers/all-mpnet-base-v2"
    }
    measures = {x.task: {*(x.measures or {})} for x in trained.rows}
    assert measures == {
        "sst2": set(),
        "cola": {"matthews"},
        "mrpc": {"f1"},
        "rte": set(),
    }
    children = store.read(tmp_path / "results" / "children.json", Row).rows
    # `sigma` is PARA's own, and its cut of each module alone is made beside it.
    methods = {"para", "local", *glue.PLAN.pruners} - {"sigma"}
    assert {(x.task, x.method, x.policy, x.seed) for x in children} == {
        (task, x, policy, seed)
        for task in glue.PLAN.tasks
        for x in methods
        for policy in ("rank 4", "rank 1", "params 0.5")
        for seed in (0, 1)
    }
