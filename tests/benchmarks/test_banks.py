"""Tests of banks: each row gets its own tenant's update; a swap changes one tenant."""

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
WAYS = ["padded", "paged", "segments", "ragged_dot"]


@pytest.fixture
def modules():
    # Imported here, since the import hook only checks modules imported after it.
    names = ("banks", "serving", "swap")
    found = {x: importlib.import_module(f"tests.benchmarks.{x}") for x in names}
    return types.SimpleNamespace(**found)


def drawn(modules, ranks):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((ranks.sum(), x), np.float32) for x in (M, N))
    return modules.banks.Factors(a, b, ranks)


def delta(factors, tenant):
    """Return the whole update `[m, n]` of one tenant, in float64."""
    begin = sum(factors.ranks[:tenant])
    own = slice(begin, begin + factors.ranks[tenant])
    return factors.a[own].T.astype(np.float64) @ factors.b[own]


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", WAYS)
def test_every_row_gets_the_update_of_its_own_tenant(modules, name, tokens):
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
    ranks[7] = 100  # Mean 0.1, deviation 3.2: far above the capacity.

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
