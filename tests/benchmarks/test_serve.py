"""Tests of serving: mixed batches are correct, and tables match the run."""

import importlib
import pathlib
import types

import jax
import numpy as np
import pytest

WAYS = 4  # The ways to apply a bank.
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def modules():
    # Imported here, since the import hook only checks modules imported after it.
    names = ("backbones", "banks", "clock", "place", "serve", "serve_rows", "serving")
    names += ("serve_steps",)
    found = {x: importlib.import_module(f"tests.benchmarks.{x}") for x in names}
    return types.SimpleNamespace(**found)


@pytest.fixture
def tiny(modules):
    """Return a model of three modules, two of which are timed."""
    kernels = {"up": (5, 7), "down": (7, 5), "other": (5, 3)}
    rng = np.random.default_rng(0)

    def forward(params, update, x):
        h = x @ params["up"] + update("up", x)
        return h @ params["down"] + update("down", h)

    return modules.backbones.Backbone(
        name="tiny",
        dtype="float32",
        kernels=kernels,
        singular=np.array([[9, 5, 2, 0.1], [4, 0.3, 0.2, 0.1], [1, 0.9, 0.1, 0.1]]),
        timed=("up", "down"),
        params={x: rng.standard_normal(kernels[x], np.float32) for x in ("up", "down")},
        inputs=lambda rows: np.resize(np.arange(11, dtype=np.float32), (rows, 1, 5)),
        forward=forward,
    )


def test_children_keep_a_quarter_of_the_ranks_and_differ_between_tenants(modules, tiny):
    ranks = modules.backbones.rank_maps(tiny.singular, 9)

    assert ranks.shape == (3, 9)
    assert ranks.sum(axis=0).tolist() == [3] * 9
    assert len({tuple(x) for x in ranks.T}) > 1


def test_memory_counts_the_whole_model(modules, tiny):
    fleet = modules.serving.Fleet(tiny, 9)
    ranks = np.stack(list(fleet.ranks["child"].values()))

    rows = {x.layout: x for x in modules.serving.memory(fleet)}

    ends = np.array([12, 12, 8])
    assert rows["parent"].bytes == 4 * 4 * ends.sum()
    assert rows["child, one rank"].bytes == 4 * ranks.max() * ends.sum()
    assert rows["child, padded"].bytes == 4 * ranks.max(axis=1) @ ends
    np.testing.assert_allclose(
        rows["child, ragged"].bytes, 4 * ranks.mean(axis=1) @ ends
    )
    assert rows["parent"].allocated == 1
    row_of_zeros = 4 * ends[:2].sum() / (4 * ranks[:2].sum(axis=1) @ ends[:2])
    np.testing.assert_allclose(rows["child, ragged"].allocated, 1 + row_of_zeros)


@pytest.mark.slow
def test_a_mixed_batch_of_the_encoder_equals_each_tenant_merged(modules, monkeypatch):
    from train.models import bert

    small = bert.Config(
        vocab_size=13, hidden_size=6, num_hidden_layers=1, num_attention_heads=3,
        intermediate_size=10, max_position_embeddings=8, type_vocab_size=2,
        layer_norm_eps=1e-12,
    )  # fmt: skip
    monkeypatch.setattr(modules.backbones, "TOKENS", 5)
    monkeypatch.setattr(modules.backbones, "MINILM", small)
    whole = modules.backbones.minilm()
    path = "bert/encoder/layer/0/intermediate/dense"
    ranks, tenants = np.array([2, 0, 3]), np.array([2, 1, 0])
    rng = np.random.default_rng(4)
    factors = modules.banks.Factors(
        *(rng.standard_normal((5, x), np.float32) for x in (6, 10)), ranks
    )
    way, batch = modules.banks.WAYS["paged"], whole.inputs(3)
    bank, plan = way.bank(factors), way.plan(ranks, tenants)

    def update(at, x):
        return way.update(bank, plan, x) if at == path else 0.0

    params = jax.tree.map(lambda x: 20 * x, whole.params)  # Makes updates visible.
    got = whole.forward(params, update, batch)

    kernel = params["bert"]["encoder"]["layer"]["0"]["intermediate"]["dense"]
    frozen, forward = kernel["kernel"], jax.jit(whole.forward, static_argnums=1)
    ends = np.cumsum(ranks)
    for i, tenant in enumerate(tenants):
        own = slice(ends[tenant] - ranks[tenant], ends[tenant])
        delta = factors.a[own].T.astype(np.float64) @ factors.b[own]
        kernel["kernel"] = (frozen + delta).astype(np.float32)
        want = forward(params, lambda *_: 0.0, batch)
        np.testing.assert_allclose(got[i], want[i], atol=1e-4)


@pytest.fixture
def here(modules, tiny, monkeypatch):
    """Set up the command with a plan that takes a second."""
    batches = [("tiny", modules.serve_steps.Batch(4, x)) for x in (4, 1)]
    plan = modules.serve.Plan(9, {"tiny": lambda: tiny}, batches)
    monkeypatch.setattr(modules.serve, "_plan", lambda small: plan)
    place = {"device": "any", "versions": "1", "bandwidth": 1}
    monkeypatch.setattr(modules.place, "where", lambda: place)
    return modules


def test_the_command_measures_saves_and_shows_again(here, tmp_path, capsys):
    saved, picture = tmp_path / "rows.json", tmp_path / "rows.svg"

    here.serve.main(["--small", "--limit", "0", "--json", str(saved)])
    printed = capsys.readouterr()
    here.serve.main(["--from", str(saved), "--markdown", "--plot", str(picture)])

    result = here.serve_rows.load(saved)
    ways = {(x.present, x.adapters, x.way) for x in result.steps}
    assert len(ways) == len(result.steps) == 2 * (1 + WAYS + 1 + 1)
    assert all(0 < x.low_ms <= x.ms <= x.high_ms for x in result.steps)
    assert all(0 < x.low <= x.throughput <= x.high for x in result.steps)
    assert len(result.misses) == WAYS + 1
    assert max(x.error for x in result.misses) < 1e-6
    assert [x.form for x in result.swaps][-1] == "one buffer"
    table = capsys.readouterr().out
    assert "| child, ragged | one buffer | 2 |" in table
    assert table.count("% (") == 2 * (WAYS + 2)
    assert "child, ragged_dot" in printed.out
    assert "tiny, 4 rows of 1: compiling child, segments" in printed.err
    assert "<svg" in picture.read_text()


def test_a_run_that_is_cut_leaves_the_rows_that_it_had(here, monkeypatch, tmp_path):
    saved, interleaved = tmp_path / "rows.json", here.clock.interleaved

    def cut(calls, *, limit):
        if ("child", "padded") in calls:
            raise KeyboardInterrupt
        return interleaved(calls, limit=limit)

    monkeypatch.setattr(here.clock, "interleaved", cut)
    with pytest.raises(KeyboardInterrupt):
        here.serve.main(["--json", str(saved), "--limit", "0"])

    result = here.serve_rows.load(saved)
    assert (len(result.memory), len(result.swaps)) == (4, 5)
    assert [x.label for x in result.steps] == ["base", "parent, padded"]


def test_out_of_time_ends_with_tables_of_what_there_is(here, tmp_path, capsys):
    picture = tmp_path / "rows.svg"

    here.serve.main(["--limit-total", "0", "--plot", str(picture)])

    printed = capsys.readouterr()
    assert "out of time" in printed.err
    assert printed.out.count("tiny   parent") == 1
    assert "<svg" in picture.read_text()


def test_a_way_that_is_wrong_is_not_timed(modules, tiny, monkeypatch):
    banks = modules.banks
    shuffled = banks.WAYS["padded"]._replace(plan=lambda _, t: t[::-1].astype(np.int32))
    monkeypatch.setitem(banks.WAYS, "padded", shuffled)
    fleet = modules.serving.Fleet(tiny, 9)

    with pytest.raises(ValueError, match="'padded' misses the plain products of 'up'"):
        modules.serving.miss(fleet, "child", "padded")


@pytest.mark.parametrize("place", ["h200", "cpu"])
def test_the_tables_on_the_page_are_those_of_the_saved_rows(modules, capsys, place):
    text = (ROOT / "docs/serving.md").read_text()
    saved = ROOT / f"tests/benchmarks/results/serve-{place}.json"

    modules.serve.main(["--from", str(saved), "--markdown"])

    shown = text.partition(f"<!-- serve:{place} -->")[2]
    shown = shown.partition(f"<!-- /serve:{place} -->")[0]
    assert shown.strip() == capsys.readouterr().out.strip()
