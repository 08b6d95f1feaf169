"""The whole grid on a model and on sentences that are tiny: what is made, and kept."""

import numpy as np
import pytest

STEPS = 12


@pytest.fixture(scope="module")
def place():
    import jax
    import jax.numpy as jnp

    from train import run
    from train.data import arrays, tokens
    from train.grid import training
    from train.models import bert

    config = bert.Config(
        vocab_size=11,
        hidden_size=18,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=21,
        max_position_embeddings=8,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
    )
    generator = np.random.default_rng(0)
    blank = bert.Tokens(np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    shapes = jax.eval_shape(bert.Bert(config).init, jax.random.key(0), blank)
    base = jax.tree.map(
        lambda x: jnp.asarray(generator.normal(scale=0.3, size=x.shape), x.dtype),
        shapes["params"],
    )

    def part(count):
        ids = [generator.integers(1, 11, 1 + i % 7).tolist() for i in range(count)]
        return ids, [int(sum(x)) % 3 for x in ids]

    data = arrays.Data(
        train=arrays.pack(*part(20), width=8),
        validation=tokens.batches(*part(13), widths=(8,)),
        test=tokens.batches(*part(17), widths=(8,)),
        sentences=20,
    )
    settings = run.Run(steps=STEPS, batch=4, max_length=8)
    model = bert.BertClassifier(config, 3)
    return training.Place("movie", model, {"bert": base}, data, settings)


@pytest.fixture
def folder(place, tmp_path):
    from train.grid import work

    return work.Folder(
        path=tmp_path / "grid",
        command="a command",
        commit="abc",
        settings=place.settings,
        say=lambda line: None,
    )


@pytest.mark.slow
def test_the_whole_grid(place, folder, tmp_path, monkeypatch):
    from train.experiments import store
    from train.experiments.rows import Row
    from train.grid import plan, work

    monkeypatch.setattr(work, "load", lambda tasks, settings: [place])
    monkeypatch.setattr(plan, "REST", (2, 3, 4, 5, 6, 7))
    monkeypatch.setattr(plan, "RETUNED", (1,))
    monkeypatch.setattr(plan, "MORE", (0.5,))
    names = [x.name for x in plan.ENTRIES]

    work.run(folder, ["movie"], names)
    counts = work.collect(folder.path, tmp_path / "results")

    rows = store.read(tmp_path / "results" / "trained.json", Row).rows
    print(counts)
    assert {x.config for x in rows} == set(names)
