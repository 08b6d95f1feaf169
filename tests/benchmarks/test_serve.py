"""Serving: each row gets its own tenant's update, and tables say what was run."""

import functools
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

RANKS = np.array([3, 0, 5, 1, 2])  # The second tenant has no adapter in this module.
TENANTS = np.array([2, 1, 0, 2, 4, 2, 0])
M, N = 7, 11
WAYS = ["padded", "padded-sum", "paged", "paged-sum", "segments", "ragged_dot"]


@pytest.fixture
def modules():
    # Here, since the import hook checks only what is imported after it.
    names = ("backbones", "banks", "place", "serve", "serve_rows", "serving", "swap")
    found = {x: importlib.import_module(f"tests.benchmarks.{x}") for x in names}
    return types.SimpleNamespace(**found)


@pytest.fixture
def tiny(modules):
    """Two layers, of which a model of three has one timed more than once."""
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


def drawn(modules, ranks):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((ranks.sum(), x), np.float32) for x in (M, N))
    return modules.banks.Factors(a, b, ranks)


def delta(factors, tenant):
    """The whole update `[m, n]` of one tenant, in float64."""
    begin = sum(factors.ranks[:tenant])
    own = slice(begin, begin + factors.ranks[tenant])
    return factors.a[own].T.astype(np.float64) @ factors.b[own]


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", WAYS)
def test_every_row_gets_the_update_of_its_own_tenant(modules, name, tokens):
    if name.endswith("-sum") and tokens > 1:
        pytest.skip("sums are for one token a row")
    factors, way = drawn(modules, RANKS), modules.banks.WAYS[name]
    shape = (len(TENANTS), tokens, M)
    x = np.random.default_rng(2).standard_normal(shape, np.float32)

    bank, plan = way.bank(factors), way.plan(RANKS, TENANTS)
    got = jax.jit(way.update)(bank, plan, x)

    want = np.stack([y @ delta(factors, t) for y, t in zip(x, TENANTS, strict=True)])
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert not want[1].any()


def test_the_ways_tested_are_all_there_are(modules):
    assert list(modules.banks.WAYS) == WAYS


def test_the_oracle_of_the_benchmark_is_the_product_of_each_row(modules):
    factors = drawn(modules, RANKS)
    x = np.random.default_rng(2).standard_normal((len(TENANTS), 2, M))

    got = modules.serving.plain(factors, TENANTS, x)

    want = np.stack([y @ delta(factors, t) for y, t in zip(x, TENANTS, strict=True)])
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_a_paged_bank_holds_each_rank_once_and_a_row_of_zeros(modules):
    factors = drawn(modules, RANKS)
    bank, table = modules.banks.paged(factors), modules.banks.table(RANKS)

    assert bank.a.shape == (1 + RANKS.sum(), M)
    assert not bank.a[0].any()
    assert sorted(table[table > 0]) == list(range(1, 1 + RANKS.sum()))
    assert (table > 0).sum(axis=1).tolist() == RANKS.tolist()


def test_a_batch_with_more_ranks_than_its_share_is_refused(modules):
    ranks = np.zeros(1000, int)
    ranks[7] = 100  # Mean 0.1, deviation 3.2: nobody expects it.

    with pytest.raises(ValueError, match=r"1 tenants has 100 ranks .* at most 16"):
        modules.banks.WAYS["segments"].plan(ranks, np.array([7]))


def adapter(modules, ranks):
    rng = np.random.default_rng(3)
    pair = modules.banks.Pair
    return {
        x: pair(*(rng.standard_normal((r, y), np.float32) for y in (M, N)))
        for x, r in ranks.items()
    }


def bank_of(modules, make):
    return {x: make(drawn(modules, RANKS)) for x in ("q", "v")}


@pytest.mark.parametrize("packed", [False, True])
def test_a_swap_changes_one_tenant_of_a_padded_bank(modules, packed):
    swap, bank = modules.swap, bank_of(modules, modules.banks.padded)
    new = swap.filled(adapter(modules, {"q": 2, "v": 0}), {"q": 5, "v": 5})
    if packed:
        shapes = jax.tree.map(np.shape, new)
        load = swap.pack(jax.tree.leaves(new)), 3
        got = swap.place_packed(shapes, jax.tree.map(jnp.asarray, bank), load)
    else:
        got = swap.place_padded(jax.tree.map(jnp.asarray, bank), (new, 3))

    for path in bank:
        for i in range(2):
            bank[path][i][3] = new[path][i]
            np.testing.assert_array_equal(got[path][i], bank[path][i])


def test_a_swap_writes_the_rows_of_a_paged_bank_that_it_was_given(modules):
    swap, bank = modules.swap, bank_of(modules, modules.banks.paged)
    new = adapter(modules, {"q": 2, "v": 3})
    rows = {"q": np.array([9, 4, 0, 0]), "v": np.array([5, 1, 8])}

    load = swap.paged_load(new, rows, size=5 * (M + N))
    place = jax.jit(functools.partial(swap.place_paged, {"q": 4, "v": 3}))
    got = place(bank, load)

    for path, own in {"q": [9, 4], "v": [5, 1, 8]}.items():
        for i in range(2):
            bank[path][i][own] = new[path][i]
            np.testing.assert_array_equal(got[path][i], bank[path][i])


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

    params = jax.tree.map(lambda x: 20 * x, whole.params)  # So that updates are seen.
    got = whole.forward(params, update, batch)

    kernel = params["bert"]["encoder"]["layer"]["0"]["intermediate"]["dense"]
    frozen, forward = kernel["kernel"], jax.jit(whole.forward, static_argnums=1)
    for i, tenant in enumerate(tenants):
        kernel["kernel"] = (frozen + delta(factors, tenant)).astype(np.float32)
        want = forward(params, lambda *_: 0.0, batch)
        np.testing.assert_allclose(got[i], want[i], atol=1e-4)


def test_the_command_measures_saves_and_shows_again(
    modules, tiny, monkeypatch, tmp_path, capsys
):
    plan = 9, [(tiny, [(4, 1), (4, 4)])]
    monkeypatch.setattr(modules.serve, "_plan", lambda small: plan)
    here = {"device": "any", "versions": "1", "bandwidth": 1}
    monkeypatch.setattr(modules.place, "where", lambda: here)
    saved, picture = tmp_path / "rows.json", tmp_path / "rows.svg"

    modules.serve.main(["--small", "--limit", "0", "--json", str(saved)])
    printed = capsys.readouterr().out
    modules.serve.main(["--from", str(saved), "--markdown", "--plot", str(picture)])

    result = modules.serve_rows.load(saved)
    ways = {(x.present, x.adapters, x.way) for x in result.steps}
    assert len(ways) == len(result.steps) == 2 * (1 + len(WAYS) + 3 + 1)
    assert all(0 < x.low_ms <= x.ms <= x.high_ms for x in result.steps)
    assert len(result.errors) == len(WAYS) + 3
    assert max(result.errors.values()) < 1e-6
    assert [x.form for x in result.swaps][-1] == "one buffer"
    table = capsys.readouterr().out
    assert "| child, ragged | one buffer | 2 |" in table
    assert table.count("(100%)") == 2
    assert "child, ragged_dot" in printed
    assert "<svg" in picture.read_text()


def test_a_way_that_is_wrong_is_not_timed(modules, tiny, monkeypatch):
    banks = modules.banks
    shuffled = banks.WAYS["padded"]._replace(plan=lambda _, t: t[::-1].astype(np.int32))
    monkeypatch.setitem(banks.WAYS, "padded", shuffled)
    fleet = modules.serving.Fleet(tiny, 9)

    with pytest.raises(ValueError, match="'padded' misses the plain products of 'up'"):
        modules.serving.errors(fleet, 5, 3)
