"""The whole grid on a tiny model and tiny data: made once, and kept."""

import numpy as np
import pytest

STEPS = 12


@pytest.fixture(scope="module")
def place(small):
    from tests.train import tiny
    from train import subjects
    from train.data import arrays, tokens
    from train.evaluation import evaluate
    from train.grid import training
    from train.models import bert
    from train.runs import settings as run

    config = tiny.config(hidden_size=18, intermediate_size=21)
    generator = np.random.default_rng(0)
    base = tiny.params(bert.Bert(config), generator)

    def part(count):
        ids = [generator.integers(1, 11, 1 + i % 7).tolist() for i in range(count)]
        return ids, [int(sum(x)) % 3 for x in ids]

    def evaluated(count):
        return evaluate.Part(tokens.batches(*part(count), widths=(8,)))

    subject = subjects.Subject(
        model=bert.BertClassifier(config, 3),
        base={"bert": base},
        data=arrays.Data(train=arrays.pack(*part(20), width=8), examples=20),
        validation=evaluated(13),
        tests={"movie": evaluated(17)},
        peft={},
    )
    settings = run.Run(steps=STEPS, batch=4, max_length=8)
    return training.Place("movie", subject, settings, small)


@pytest.fixture(scope="module")
def small():
    """The plan, with few seeds, rates and budgets."""
    import dataclasses

    from train.grid import plan

    return dataclasses.replace(
        plan.SENTIMENT,
        search_seeds=(0, 1),
        other_seeds=(2, 3, 4, 5),
        rates=(1e-3, 1e-2),
        outer=(1e-4, 3e-2),
        cuts=(4, 0.5),
        shares=(0.25,),
        energies=(0.9,),
        dropped=(3,),
        retuned=(1,),
        more=(0.5,),
    )


@pytest.fixture(scope="module")
def trained(place):
    from train.grid import plan, training

    return training.train(place, plan.PARENT.config)


@pytest.fixture
def folder(place, tmp_path):
    from train.grid import work

    return work.Folder(
        path=tmp_path / "grid",
        command="a command",
        commit="abc",
        plan=place.plan,
        say=lambda line: None,
    )


def test_the_rate_of_the_best_mean_validation_accuracy_trains_the_other_seeds(trained):
    by_rate = {}
    for tried in trained.searched:
        for (_, rate), value in zip(tried.run.members, tried.validation, strict=True):
            by_rate.setdefault(rate, []).append(value)

    assert set(by_rate) == {1e-3, 1e-2, 1e-4, 3e-2}  # Of two, the best is at an end.
    assert trained.rate == max(by_rate, key=lambda rate: sum(by_rate[rate]))
    assert trained.seeds == (0, 1, 2, 3, 4, 5)
    np.testing.assert_array_equal(trained.validation[:2], by_rate[trained.rate])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracies", "runs"),
    [((0.5, 0.8, 0.7), 1), ((0.8, 0.5, 0.7), 2), ((0.5, 0.7, 0.8), 2)],
)
def test_rates_outside_are_tried_where_the_best_is_at_an_end(
    place, monkeypatch, accuracies, runs
):
    import dataclasses

    from train.grid import plan, training

    wide = dataclasses.replace(
        place.plan,
        rates=(1e-3, 1e-2, 1e-4),
        outer=(1e-5, 1e-6, 1e-7),
        other_seeds=(2,),
    )
    # What so small a model reaches is chance: the rule is what is tested.
    monkeypatch.setattr(training, "_accuracies", lambda *_: np.tile(accuracies, 2))

    found = training.train(place._replace(plan=wide), plan.PARENT.config)

    tried = [x.run.learning_rates for x in found.searched]
    assert tried == [wide.rates, wide.outer][:runs]
    best = accuracies.index(max(accuracies))
    assert found.rate == wide.rates[best]
    alone = dataclasses.replace(wide, outer=())
    found = training.train(place._replace(plan=alone), plan.PARENT.config)
    assert len(found.searched) == 1


def member(learners, index):
    import jax
    import jax.numpy as jnp

    found = learners.state, learners.head
    return jax.tree.map(lambda x: jnp.asarray(x[index]), found)


def test_accuracies_are_those_of_the_base_with_the_update_merged_in(place, trained):
    import jax.numpy as jnp

    from para_jax._adapters.params import nest, unnest
    from train.grid import plan, training

    rows = training.rows(place, trained, plan.PARENT)

    tested = [x for x in rows if x.accuracy is not None]
    assert [x.seed for x in tested] == list(trained.seeds)
    assert {x.learning_rate for x in tested} == {trained.rate}
    method = plan.PARENT.config.method(STEPS)
    for i in (0, 3):
        state, head = member(trained.learners, i)
        leaves = unnest(place.subject.base)
        for path, x in method.finish(state).items():
            kernel = np.asarray(leaves[f"{path}/kernel"], np.float64)
            leaves[f"{path}/kernel"] = jnp.asarray(kernel + x.scale * x.a @ x.b, "f4")
        params = {**nest(leaves), "classifier": head}
        right = 0
        for batch in place.subject.tests["movie"].batches:
            logits = place.subject.model.apply({"params": params}, batch.inputs)
            right += int(np.sum(np.argmax(logits, -1) == batch.labels))
        assert tested[i].accuracy == pytest.approx(right / 17)


@pytest.mark.slow
def test_children_have_the_budgets_that_their_rows_say(place, trained):
    from train import posthoc
    from train.grid import offspring

    parent = offspring.parents(trained)[1]
    base = posthoc.statistics(place.subject.base)

    rows = offspring.rows(place, trained.rate, parent, base)

    assert {x.seed for x in rows} == {1}
    by_name = {(x.method, x.policy): x for x in rows}
    # Every pruner and the local cut at three budgets, and one row of each kind more.
    assert len(by_name) == len(rows) == (20 + 1) * 3 + 1 + 1
    modules = 12
    for (method, policy), row in by_name.items():
        kind, value = policy.split()
        if kind == "rank":
            assert row.rank_total == int(float(value) * modules), (method, policy)
        if kind == "params":
            whole = sum(x.parameters for x in parent.adapters.values())
            assert row.params <= float(value) * whole
    spectra = [
        np.linalg.svd(x.scale * np.float64(x.a) @ x.b, compute_uv=False)[:16]
        for x in parent.adapters.values()
    ]
    # What float32 factors do not tell from zero is no component.
    there = sum(int(np.sum(s > 16 * 2.0**-23 * s[0])) for s in spectra)
    assert by_name["drop-top", "drop 3"].rank_total == there - 3
    s = np.sort(np.concatenate(spectra))[::-1]
    kept = int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.9)) + 1
    assert by_name["para", "epsilon 0.9"].rank_total == kept


@pytest.mark.slow
def test_a_retuned_child_starts_as_the_child_and_keeps_its_ranks(place, trained):
    import dataclasses

    import jax

    import para_jax as para
    from train.grid import offspring, plan, retuning
    from train.runs import settings as run

    parents = offspring.parents(trained)
    rows = retuning.rows(place, parents, 1, 0.5)

    tested = [x for x in rows if x.accuracy is not None]
    assert {x.policy for x in rows} == {"rank 1 steps 0.5"}
    assert {x.steps for x in rows} == {STEPS // 2}
    assert {x.rank_total for x in tested} == {12}
    want = para.compress(parents[0].adapters, para.Rank(1)).adapters
    factors, _ = retuning._start(parents[0], 1, plan.PARENT.config)
    for path, x in want.items():
        got = 2.0 * factors[path]["a"] @ factors[path]["b"]
        np.testing.assert_allclose(got, x.scale * x.a @ x.b, atol=1e-5)
    assert sum(bool(x["b"].any()) for x in factors.values()) == len(want)
    short = dataclasses.replace(place.settings, steps=STEPS // 2)
    settings = place.plan.search("movie", plan.PARENT.config, short)
    subject = place.subject
    given = run.inputs(settings, subject.model, subject.base, subject.data)
    start = retuning._begin(given, {x.seed: (factors, x.head) for x in parents})
    head = jax.tree.map(lambda x: np.asarray(x[0]), start.head)
    jax.tree.map(np.testing.assert_array_equal, head, dict(parents[0].head))


@pytest.mark.slow
def test_a_grid_is_shared_resumed_and_collected(place, folder, tmp_path, monkeypatch):
    import dataclasses

    from train.experiments import store
    from train.experiments.rows import Row
    from train.grid import work

    monkeypatch.setattr(work, "load", lambda tasks, plan: [place])
    names = ("lora-16", "lora-half", "dylora")

    with work.locked(folder.path / "lora-half.lock"):
        work.run(folder, ["movie"], names)
    made = {x: x.stat().st_mtime_ns for x in folder.path.rglob("*.json")}
    assert not folder.file("trained", "lora-half-movie").exists()
    work.run(folder, ["movie"], names)
    counts = work.collect(folder.path, tmp_path / "results")

    assert {x: x.stat().st_mtime_ns for x in made} == made
    assert set(counts) == {"trained", "children", "retuned", "spectra"}
    found = store.read(tmp_path / "results" / "trained.json", Row)
    assert {x.config for x in found.rows} == set(names)
    assert found.configs["dylora"]["method"]["mode"] == "frozen"
    policies = {x.policy for x in found.rows if x.method == "dylora"}
    assert policies == {f"rank {x}" for x in (16, 8, 4, 2, 1)}
    assert counts["spectra"] == 6 * 12

    other = dataclasses.replace(place.settings, steps=STEPS + 1)
    longer = [place._replace(settings=other)]
    monkeypatch.setattr(work, "load", lambda tasks, plan: longer)
    with pytest.raises(ValueError, match="made with steps 12, and 13 is asked for"):
        work.run(folder, ["movie"], names)


@pytest.mark.slow
def test_a_grid_that_is_finished_says_so(place, folder, monkeypatch):
    import dataclasses

    from train.grid import work

    said = []
    folder = dataclasses.replace(folder, say=said.append)
    monkeypatch.setattr(work, "load", lambda tasks, plan: [place])

    work.run(folder, ["movie"], ["lora-half"])
    assert not any("was there" in x for x in said)
    said.clear()
    work.run(folder, ["movie"], ["lora-half"])

    assert said == ["All of it was there already."]


def test_nothing_to_collect_is_said(tmp_path):
    from train.grid import work

    with pytest.raises(FileNotFoundError, match="holds no results"):
        work.collect(tmp_path, tmp_path)


def test_what_was_made_in_several_places_names_all_of_them(tmp_path):
    from train.experiments import store
    from train.experiments.rows import Cost
    from train.grid import work

    for name, device in (("lora", "B"), ("sora", "A"), ("dora", "B")):
        part = store.Results(
            command="a command",
            commit="abc",
            versions={"jax": f"0.1{len(device)}", "numpy": device},
            device=device,
            configs={},
            rows=[Cost(method=name, policy="rank 4", step_seconds=0.5)],
        )
        store.write(tmp_path / "cost" / f"{name}.json", part)

    assert work.collect(tmp_path, tmp_path / "results") == {"cost": 3}

    joined = store.read(tmp_path / "results" / "cost.json", Cost)
    assert (joined.device, joined.commit) == ("A, B", "abc")
    assert joined.versions == {"jax": "0.11", "numpy": "A, B"}


def test_unknown_methods_and_tasks_are_named(tmp_path):
    from train.commands import grid

    with pytest.raises(ValueError, match=r"Unknown method 'lroa'.* are: lora-16, "):
        grid.grid(out=tmp_path, methods=("lroa",))
    with pytest.raises(ValueError, match=r"Unknown task 'film'\. There are: movie, "):
        grid.grid(out=tmp_path, tasks=("film",))
    with pytest.raises(ValueError, match="Did you mean 'paper/glue'"):
        grid.grid(preset="paper/gleu")


@pytest.mark.slow
def test_the_cost_of_a_step_is_measured(place):
    import dataclasses

    import jax

    from train.grid import cost, plan

    longer = dataclasses.replace(place.settings, steps=60)
    got = cost.measure(place._replace(settings=longer), plan.PARENT, steps=5)

    assert (got.method, got.policy) == ("lora", "rank 16")
    assert got.step_seconds > 0
    held = sum(x.size * 4 for x in jax.tree.leaves(place.subject.base))
    assert got.peak_bytes > held
