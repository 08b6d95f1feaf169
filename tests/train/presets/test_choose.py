"""The comparison of scores on questions, from end to end on tiny models and data."""

import pytest

from train.data import commonsense


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    from train.subjects import multiple_choice

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # A batch is filled up to so many tokens, and a tiny set has few.
    monkeypatch.setattr(multiple_choice, "_TOKENS", 1024)
    for name in ("PARA_DATA", "PARA_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_every_score_is_compared_on_every_set(tmp_path, capsys):
    from train import __main__ as main
    from train.experiments import store
    from train.experiments.rows import Row, Spectrum
    from train.presets import choose

    out, results = str(tmp_path / "out"), str(tmp_path / "results")
    words = ["grid", "--preset", "choose", "--tiny", "--out", out]

    main.main([*words, "--methods", "lora-16"])
    main.main(["collect", "--source", out, "--out", results])

    def read(name, kind=Row):
        return store.read(tmp_path / "results" / f"{name}.json", kind).rows

    sets = [f"choose/{x}" for x in commonsense.TASKS]
    trained = read("trained")
    assert {(x.task, x.seed) for x in trained} == {(x, y) for x in sets for y in (0, 1)}
    children = read("children")
    # `sigma` is PARA's own, and its cut of each module alone is made beside it.
    methods = {"para", "local", *choose.PLAN.pruners} - {"sigma"}
    assert {(x.task, x.method, x.policy, x.seed) for x in children} == {
        (name, x, policy, seed)
        for name in sets
        for x in methods
        for policy in ("rank 4", "rank 1", "params 0.5")
        for seed in (0, 1)
    }
    for x in (*trained, *children):
        assert round(12 * x.accuracy) == pytest.approx(12 * x.accuracy, abs=1e-4)
        assert x.modules == 14  # Seven projections in each of two layers.
    assert {x.task for x in read("spectra", Spectrum)} == {"choose"}
    capsys.readouterr()
    main.main(["table", "all", "--folder", results])
    shown = [x.split() for x in capsys.readouterr().out.splitlines()]
    assert ["method", *sets, "mean", "rank", "params"] in shown


@pytest.mark.slow
def test_another_language_model_takes_its_place(tmp_path):
    from train import __main__ as main
    from train.experiments import store
    from train.experiments.rows import Row

    llama = "HuggingFaceTB/SmolLM2-135M-Instruct"
    words = ["grid", "--preset", "choose", "--tiny", "--out", str(tmp_path / "out")]

    main.main([*words, "--methods", "lora-1", "--model", llama])

    found = store.read(tmp_path / "out" / "trained" / "lora-1-choose.json", Row)
    assert found.configs["lora-1"]["model"] == llama
    assert len(found.rows) == 2 * len(commonsense.TASKS)
    assert all(x.accuracy is not None for x in found.rows)
