"""Test policies against a plain Python account of the rules, in exact fractions."""

import dataclasses
import math
from fractions import Fraction

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import para_jax
from para_jax._adapters.adapter import ordered

Bytes, Epsilon, Gamma = para_jax.Bytes, para_jax.Epsilon, para_jax.Gamma
Params, Rank, Threshold = para_jax.Params, para_jax.Rank, para_jax.Threshold

PRECISIONS = [
    pytest.param("float64"),
    pytest.param("float32", marks=pytest.mark.user_defaults),
]

# Path, stack, k, (m, n), dtype, in the model's order; every mapping is given reversed.
LAYOUT = [
    ("layer/2/q", (), 4, (8, 6), "float32"),
    ("layer/10/q", (), 3, (5, 9), "bfloat16"),
    ("mlp", (2,), 5, (7, 11), "float32"),
]
# The worked pool of the paper's notation: layers a, b and c.
POOL = {"a": [6.0, 2.0], "b": [5.0, 1.0], "c": [0.5, 0.0]}


def spectrum(s, *, shape=(8, 6), dtype="float32", rank=None, nominal=None):
    """Return a Spectrum of these singular values; its factors are never read."""
    s = np.asarray(s, np.float64)
    *stack, k = s.shape
    rank = rank or k
    return para_jax.Spectrum(
        s=s,
        left=np.zeros((*stack, rank, k)),
        right=np.zeros((*stack, k, rank)),
        shape=shape,
        dtype=dtype,
        nominal=nominal or k,
    )


def spectra_of(values):
    return {path: spectrum(s) for path, s in values.items()}


def kept_ranks(spectra, policy):
    """Return the ranks as integers, after checking that the traced masks agree."""
    exact = para_jax.ranks(spectra, policy)
    traced = para_jax.masks(spectra, policy)
    assert list(exact) == list(traced) == ordered(spectra)
    for path, mask in traced.items():
        assert mask.dtype == bool
        assert mask.shape == spectra[path].s.shape
        np.testing.assert_array_equal(mask.sum(-1), exact[path], err_msg=path)
        prefix = np.arange(mask.shape[-1]) < exact[path][..., None]
        np.testing.assert_array_equal(mask, prefix, err_msg=path)
    return {path: rank.tolist() for path, rank in exact.items()}


# --- The same rules once more, one module after the other -------------------------


@dataclasses.dataclass
class Module:
    s: list
    cost: int
    itemsize: int
    rank: int
    nominal: int

    @property
    def resolved(self):
        floor = self.rank * Fraction(1, 2**23) * self.s[0]
        return sum(x > floor for x in self.s)

    def cap(self, policy):
        if policy.max_rank is None or len(self.s) <= policy.max_rank:
            return len(self.s)
        return policy.max_rank // policy.multiple_of * policy.multiple_of


def modules_of(spectra, order):
    result = []
    for path in order:
        x = spectra[path]
        itemsize = {"float32": 4, "bfloat16": 2}[x.dtype]
        rows = np.asarray(x.s).reshape(-1, x.s.shape[-1])
        for index, row in enumerate(rows):
            del index
            s = [Fraction(float(value)) for value in row]
            cost = x.shape[0] + x.shape[1]
            result.append(Module(s, cost, itemsize, x.left.shape[-2], x.nominal))
    return result


def round_up(rank, q):
    return -(-rank // q) * q


def oracle(modules, policy):
    """Return the rank of each module, or None if the budget cannot be kept."""
    if isinstance(policy, (Epsilon, Threshold)):
        return cut_at_threshold(modules, policy)
    return spend_budget(modules, policy)


def cut_at_threshold(modules, policy):
    pools = [modules] if policy.scope == "global" else [[x] for x in modules]
    result = []
    for members in pools:
        kept = [x.s[: min(x.cap(policy), x.resolved)] for x in members]
        tau = Fraction(policy.value) if isinstance(policy, Threshold) else Fraction(0)
        if isinstance(policy, Epsilon):
            wanted = Fraction(str(policy.value)) * sum(
                s * s for x in members for s in x.s
            )
            for candidate in sorted({s for row in kept for s in row}, reverse=True):
                if sum(s * s for row in kept for s in row if s >= candidate) >= wanted:
                    tau = candidate
                    break
        for row in kept:
            rank = max(sum(s >= tau for s in row), policy.min_rank)
            result.append(min(round_up(rank, policy.multiple_of), len(row)))
    return result


def spend_budget(modules, policy):
    q, value = policy.multiple_of, Fraction(str(policy.value))
    price = [
        {Gamma: 1, Rank: 1, Params: x.cost, Bytes: x.cost * x.itemsize}[type(policy)]
        for x in modules
    ]
    if isinstance(policy, Gamma):
        budget = max(1, math.floor(value * sum(x.nominal for x in modules)))
    elif isinstance(policy, Rank):
        budget = math.floor(value * len(modules))
    else:
        budget = math.floor(value)
    low, high = round_up(policy.min_rank, q), [x.cap(policy) for x in modules]
    if policy.scope == "local":
        low = max(low, budget // sum(price) // q * q)
        more = q if policy.remainder == "greedy" else 0
        high = [min(x, low + more) for x in high]
    if sum(min(low, h) * p for h, p in zip(high, price, strict=True)) > budget:
        return None
    ranks = [min(low, h, x.resolved) for h, x in zip(high, modules, strict=True)]
    spent = sum(r * p for r, p in zip(ranks, price, strict=True))
    while True:
        best = None
        for i, (x, rank) in enumerate(zip(modules, ranks, strict=True)):
            block = x.s[rank : rank + q]
            if rank >= min(high[i], x.resolved):
                continue
            worth = sum(s * s for s in block) / len(block) / price[i]
            if best is None or worth > best[0]:
                best = worth, i, len(block)
        if best is None or spent + best[2] * price[best[1]] > budget:
            break
        ranks[best[1]] += best[2]
        spent += best[2] * price[best[1]]
    if policy.ties == "threshold" and sum(ranks) and q == 1:
        ranks = with_ties(modules, price, ranks, low, high)
    return ranks


def with_ties(modules, price, ranks, low, high):
    """Return `ranks` and all components tied with the last one bought."""
    worths = [
        x.s[j] ** 2 / p
        for x, p, rank in zip(modules, price, ranks, strict=True)
        for j in range(low, rank)
    ]
    if not worths:
        return ranks
    return [
        max(rank, sum(s * s / p >= min(worths) for s in x.s[: min(h, x.resolved)]))
        for x, p, rank, h in zip(modules, price, ranks, high, strict=True)
    ]


@st.composite
def pools(draw, smallest=1):
    """Return spectra of one fixed layout; their small integers tie often."""
    result = {}
    for path, stack, k, shape, dtype in reversed(LAYOUT):
        rows = [
            sorted(draw(st.lists(st.integers(smallest, 6), min_size=k, max_size=k)))[
                ::-1
            ]
            for _ in range(math.prod(stack))
        ]
        s = np.reshape(rows, (*stack, k))
        result[path] = spectrum(s, shape=shape, dtype=dtype)
    return result


LIMITS = {
    "scope": st.sampled_from(["global", "local"]),
    "min_rank": st.sampled_from([0, 0, 1, 2]),
    "max_rank": st.sampled_from([None, None, 2, 4]),
}
BUDGETS = {
    **LIMITS,
    "ties": st.sampled_from(["exact", "threshold"]),
    "remainder": st.sampled_from(["floor", "greedy"]),
}
POLICIES = st.one_of(
    st.builds(Gamma, st.integers(2, 20).map(lambda x: x / 20), **BUDGETS),
    st.builds(Rank, st.integers(25, 425).map(lambda x: x / 100), **BUDGETS),
    st.builds(Params, st.integers(18, 278), **BUDGETS),
    st.builds(Bytes, st.integers(72, 1028), **BUDGETS),
    st.builds(Epsilon, st.sampled_from([0.1, 0.5, 0.64, 0.9, 0.99, 1.0]), **LIMITS),
    st.builds(Threshold, st.integers(0, 7), **LIMITS),
)
ORDER = [path for path, *_ in LAYOUT]


def check_against_the_oracle(spectra, policy):
    want = oracle(modules_of(spectra, ORDER), policy)
    if want is None:
        with pytest.raises(ValueError, match="Lower one or raise the other"):
            para_jax.masks(spectra, policy)
        return
    ranks = kept_ranks(spectra, policy)
    assert np.concatenate([np.ravel(ranks[path]) for path in ORDER]).tolist() == want


@hypothesis.given(spectra=pools(smallest=0), policy=POLICIES)
@hypothesis.settings(max_examples=120)
def test_any_policy_keeps_what_the_rules_say(spectra, policy):
    check_against_the_oracle(spectra, policy)


@pytest.mark.user_defaults
@hypothesis.given(spectra=pools(smallest=0), policy=POLICIES)
@hypothesis.settings(max_examples=60)
def test_any_policy_keeps_what_the_rules_say_in_single_precision(spectra, policy):
    check_against_the_oracle(spectra, policy)


@hypothesis.given(spectra=pools(), policy=POLICIES, q=st.sampled_from([2, 3, 4]))
@hypothesis.settings(max_examples=60)
def test_blocks_of_components_are_bought_whole(spectra, policy, q):
    hypothesis.assume(getattr(policy, "ties", "exact") == "exact")
    hypothesis.assume(policy.max_rank is None or policy.max_rank >= q)
    hypothesis.assume(policy.min_rank == 0 or policy.max_rank is None)
    check_against_the_oracle(spectra, dataclasses.replace(policy, multiple_of=q))


@hypothesis.given(spectra=pools(smallest=0), policy=POLICIES, q=st.integers(1, 4))
@hypothesis.settings(max_examples=60)
def test_a_budget_is_never_exceeded_and_limits_hold(spectra, policy, q):
    hypothesis.assume(policy.max_rank is None or policy.max_rank >= max(q, 4))
    hypothesis.assume(getattr(policy, "ties", "exact") == "exact")
    policy = dataclasses.replace(policy, multiple_of=q)
    modules = modules_of(spectra, ORDER)
    try:
        ranks = para_jax.ranks(spectra, policy)
    except ValueError:
        hypothesis.reject()

    kept = np.concatenate([np.ravel(ranks[path]) for path in ORDER]).tolist()

    budget = {
        Gamma: lambda: max(1, math.floor(Fraction(str(policy.value)) * 17)),
        Rank: lambda: math.floor(policy.value * 4),
        Params: lambda: policy.value,
        Bytes: lambda: policy.value,
    }
    for rank, x in zip(kept, modules, strict=True):
        assert rank % q == 0 or rank in (x.resolved, len(x.s))
        assert rank >= min(policy.min_rank, x.resolved)
        assert policy.max_rank is None or rank <= policy.max_rank
    if type(policy) in budget:
        price = {Params: lambda x: x.cost, Bytes: lambda x: x.cost * x.itemsize}
        price = price.get(type(policy), lambda _: 1)
        spent = sum(rank * price(x) for rank, x in zip(kept, modules, strict=True))
        assert spent <= budget[type(policy)]()


@hypothesis.given(
    spectra=pools(smallest=0),
    budgets=st.tuples(st.integers(1, 17), st.integers(1, 17)).map(sorted),
    q=st.integers(1, 3),
)
@hypothesis.settings(max_examples=40)
def test_children_of_rising_budgets_nest(spectra, budgets, q):
    small, large = (
        para_jax.ranks(spectra, Rank(budget / 4, multiple_of=q)) for budget in budgets
    )

    assert all((small[path] <= large[path]).all() for path in ORDER)


@hypothesis.given(
    spectra=pools(), budgets=st.lists(st.integers(18, 278), min_size=2, max_size=2)
)
@hypothesis.settings(max_examples=40)
def test_children_of_rising_parameter_budgets_nest(spectra, budgets):
    small, large = (para_jax.ranks(spectra, Params(x)) for x in sorted(budgets))

    assert all((small[path] <= large[path]).all() for path in ORDER)


# --- The meaning of each policy, on pools that can be checked by eye ---------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("policy", "want"),
    [
        (Gamma(0.5), (2, 1, 0)),
        (Gamma(1.0), (2, 2, 1)),
        (Rank(1), (2, 1, 0)),
        (Rank(0), (0, 0, 0)),
        (Rank(2 / 3), (1, 1, 0)),
        (Params(42), (2, 1, 0)),
        (Params(41), (1, 1, 0)),
        (Bytes(4 * 42), (2, 1, 0)),
        (Epsilon(0.9), (1, 1, 0)),
        (Epsilon(0.99), (2, 2, 0)),
        (Epsilon(1.0), (2, 2, 1)),
        (Threshold(2.0), (2, 1, 0)),
        (Threshold(2.1), (1, 1, 0)),
        (Threshold(0.0), (2, 2, 1)),
        (Threshold(math.inf), (0, 0, 0)),
        (Threshold(5.5, min_rank=1), (1, 1, 1)),
        (Gamma(0.5, min_rank=1), (1, 1, 1)),
        (Gamma(2 / 3, max_rank=1), (1, 1, 1)),
        (Gamma(0.5, scope="local"), (1, 1, 1)),
        (Gamma(0.67, scope="local"), (1, 1, 1)),
        (Gamma(0.67, scope="local", remainder="greedy"), (2, 1, 1)),
        (Epsilon(0.95, scope="local"), (2, 1, 1)),
        (Epsilon(0.9, multiple_of=2), (2, 2, 0)),
        (Rank(1, multiple_of=2), (2, 0, 0)),
    ],
    ids=lambda x: x.name if isinstance(x, para_jax.Policy) else "",
)
def test_the_worked_pool(precision, policy, want):
    got = kept_ranks(spectra_of(POOL), policy)

    assert tuple(got.values()) == want


def test_layers_are_in_the_models_order_not_in_the_alphabets():
    paths = ["layer/10/q", "layer/2/q", "b/1", "layer/2/k", "layer/1"]
    spectra = {path: spectrum([1.0]) for path in paths}

    one = kept_ranks(spectra, Rank(1 / 5))
    most = kept_ranks(spectra, Rank(4 / 5))

    assert list(one) == ["b/1", "layer/1", "layer/2/k", "layer/2/q", "layer/10/q"]
    assert list(one.values()) == [1, 0, 0, 0, 0]
    assert list(most.values()) == [1, 1, 1, 1, 0]


def test_the_order_of_the_mapping_does_not_matter():
    values = {f"layer/{i}": [1.0, 1.0] for i in range(12)}
    reversed_values = dict(reversed(values.items()))

    one = kept_ranks(spectra_of(values), Rank(5 / 12))
    other = kept_ranks(spectra_of(reversed_values), Rank(5 / 12))

    assert one == other
    assert list(one.values()) == [2, 2, 1] + 9 * [0]


@pytest.mark.parametrize(
    ("policy", "want"),
    [
        (Rank(1.5), [2, 1]),
        (Rank(1.5, ties="threshold"), [2, 2]),
        (Epsilon(0.7), [2, 2]),
        (Threshold(3.0), [2, 2]),
        (Rank(0.5, ties="threshold"), [2, 2]),
        (Rank(0, ties="threshold"), [0, 0]),
    ],
    ids=lambda x: x.name if isinstance(x, para_jax.Policy) else "",
)
def test_ties(policy, want):
    got = kept_ranks(spectra_of({"x": [3.0, 3.0, 1.0], "y": [3.0, 3.0, 1.0]}), policy)

    assert list(got.values()) == want


@pytest.mark.parametrize(
    ("rank", "modules", "want"),
    [(0.29, 100, 29), (0.57, 100, 57), (0.58, 100, 58), (0.07, 100, 7)],
)
def test_a_budget_that_is_whole_but_for_rounding_is_whole(rank, modules, want):
    """In float64, 0.29 times 100 is less than 29."""
    assert rank * modules != want
    spectra = {f"m{i}": spectrum([1.0]) for i in range(modules)}

    assert sum(kept_ranks(spectra, Rank(rank)).values()) == want


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("largest", "ones"), [(2, 1), (3, 1), (5, 3), (4, 7), (9, 1), (11, 2)]
)
@pytest.mark.slow
def test_an_energy_that_equals_its_share_is_enough(precision, largest, ones):
    """The share, once rounded, may be less than the dropped part."""
    epsilon = largest**2 / (largest**2 + ones)
    spectra = {"x": spectrum([float(largest)] + [1.0] * ones)}

    assert kept_ranks(spectra, Epsilon(epsilon)) == {"x": 1}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_singular_values_are_bought_from_the_front(precision):
    for value in np.random.default_rng(0).uniform(0.5, 2, 40):
        got = kept_ranks({"x": spectrum([value] * 4)}, Rank(1, multiple_of=3))
        assert got == {"x": 0}, value


def test_a_parameter_budget_weighs_a_component_by_what_it_costs():
    # 3^2 / 100 < 2^2 / 10: the small matrix's component is the better buy.
    spectra = {
        "large": spectrum([3.0], shape=(60, 40)),
        "small": spectrum([2.0, 1.0], shape=(4, 6)),
    }

    assert kept_ranks(spectra, Rank(0.5)) == {"large": 1, "small": 0}
    assert kept_ranks(spectra, Params(109)) == {"large": 0, "small": 2}
    assert kept_ranks(spectra, Params(120)) == {"large": 1, "small": 2}


def test_a_byte_budget_weighs_the_storage_dtype():
    spectra = {
        "half": spectrum([1.0], dtype="bfloat16"),
        "single": spectrum([1.3], dtype="float32"),
    }

    assert kept_ranks(spectra, Params(14)) == {"half": 0, "single": 1}
    assert kept_ranks(spectra, Bytes(56)) == {"half": 1, "single": 0}
    assert kept_ranks(spectra, Bytes(84)) == {"half": 1, "single": 1}


def test_a_local_parameter_budget_gives_every_module_the_same_rank():
    spectra = {
        "large": spectrum([9.0, 8.0, 7.0], shape=(60, 40)),
        "small": spectrum([1.0, 1.0, 1.0], shape=(4, 6)),
    }

    got = kept_ranks(spectra, Params(225, scope="local"))
    greedy = kept_ranks(spectra, Params(235, scope="local", remainder="greedy"))

    assert got == {"large": 2, "small": 2}
    assert greedy == {"large": 2, "small": 2}  # 64 / 100 < 1 / 10: but both have two.


def test_noise_is_never_worth_its_parameters():
    noise = 1e-8  # Below 4 * 1.2e-7 of the largest; 1e-6 is above.
    spectra = spectra_of({"x": [1.0, 0.5, 1e-6, noise], "y": [1e-4, 1e-11, 0.0, 0.0]})

    for policy in (Gamma(1.0), Epsilon(1.0), Threshold(0.0), Rank(3, scope="local")):
        assert kept_ranks(spectra, policy) == {"x": 3, "y": 1}, policy
    assert kept_ranks(spectra, Rank(0, min_rank=0)) == {"x": 0, "y": 0}
    assert kept_ranks(spectra, Epsilon(0.1, min_rank=2)) == {"x": 2, "y": 1}


def test_the_zero_tolerance_counts_the_rank_of_the_factors():
    # k = 2 components of factors of rank 40: 40 eps = 4.8e-6.
    values = [1.0, 3e-6]

    assert kept_ranks({"x": spectrum(values)}, Threshold(0)) == {"x": 2}
    assert kept_ranks({"x": spectrum(values, rank=40)}, Threshold(0)) == {"x": 1}


def test_budgets_count_the_nominal_rank():
    spectra = {
        "x": spectrum([4.0, 3.0, 2.0, 1.0], nominal=2),
        "y": spectrum([5.0, 0.5]),
    }

    assert kept_ranks(spectra, Gamma(0.75)) == {"x": 2, "y": 1}
    assert kept_ranks(spectra, Gamma(1.0)) == {"x": 3, "y": 1}
    with pytest.raises(ValueError, match="above the parent's 4"):
        para_jax.ranks(spectra, Rank(2.5))


def test_a_cap_moves_the_budget_to_other_modules():
    spectra = spectra_of({"x": [9.0, 8.0, 7.0], "y": [3.0, 2.0, 1.0]})

    assert kept_ranks(spectra, Rank(1.5)) == {"x": 3, "y": 0}
    assert kept_ranks(spectra, Rank(1.5, max_rank=2)) == {"x": 2, "y": 1}
    assert kept_ranks(spectra, Epsilon(0.7, max_rank=2)) == {"x": 2, "y": 1}
    assert kept_ranks(spectra, Epsilon(0.99, max_rank=2)) == {"x": 2, "y": 2}


def test_a_local_remainder_goes_to_the_largest_next_value():
    spectra = spectra_of({"x": [9.0, 1.0], "y": [8.0, 3.0], "z": [2.0, 2.0]})

    assert kept_ranks(spectra, Rank(4 / 3, scope="local")) == {"x": 1, "y": 1, "z": 1}
    greedy = Rank(4 / 3, scope="local", remainder="greedy")
    assert kept_ranks(spectra, greedy) == {"x": 1, "y": 2, "z": 1}


def test_limits_that_no_rank_can_meet_are_refused():
    # No multiple of 4 lies between 5 and 7.
    with pytest.raises(ValueError, match="min_rank"):
        para_jax.ranks(
            {"x": spectrum(np.arange(9.0, 0.0, -1))},
            Threshold(0, min_rank=5, max_rank=7, multiple_of=4),
        )


def test_all_stacked_kernels_are_modules_of_their_own():
    stacked = {"mlp": spectrum([[[6.0, 2.0], [5.0, 1.0]]])}

    assert kept_ranks(stacked, Rank(1.5)) == {"mlp": [[2, 1]]}
    assert kept_ranks(stacked, Rank(1, scope="local")) == {"mlp": [[1, 1]]}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "policy",
    [
        Gamma(0.3),
        Gamma(0.6, scope="local", remainder="greedy"),
        Rank(2, min_rank=1, max_rank=3),
        Params(150, multiple_of=2),
        Bytes(600),
        Epsilon(0.9),
        Epsilon(0.9, scope="local"),
        Threshold(0.4, multiple_of=2),
    ],
    ids=lambda x: x.name,
)
def test_masks_under_jit_agree_with_the_ranks_of_the_host(precision, policy):
    rng = np.random.default_rng(3)
    spectra = {
        path: spectrum(-np.sort(-rng.random((*stack, k))), shape=shape, dtype=dtype)
        for path, stack, k, shape, dtype in LAYOUT
    }

    masks = jax.jit(lambda x: para_jax.masks(x, policy))(spectra)

    for path, rank in para_jax.ranks(spectra, policy).items():
        np.testing.assert_array_equal(masks[path].sum(-1), rank)


@pytest.mark.user_defaults
def test_one_thousand_values_in_single_precision_keep_the_same_as_the_host():
    rng = np.random.default_rng(0)
    spectra = {
        f"layer/{i}": spectrum(-np.sort(-rng.lognormal(0, 3, (100, 16))))
        for i in range(2)
    }

    for policy in (Gamma(0.25), Epsilon(0.999), Epsilon(0.9, scope="local")):
        exact = para_jax.ranks(spectra, policy)
        traced = para_jax.masks(spectra, policy)
        for path, mask in traced.items():
            np.testing.assert_array_equal(mask.sum(-1), exact[path])


@pytest.mark.user_defaults
def test_parameters_of_a_large_model_do_not_overflow_32_bits():
    # 70 billion parameters' worth of kernels at rank 64, in bytes.
    s = np.tile(np.linspace(2.0, 1.0, 64), (640, 1))
    spectra = {"mlp": spectrum(s, shape=(8192, 28672))}
    whole = 640 * 64 * (8192 + 28672) * 4

    half = para_jax.masks(spectra, Bytes(whole // 2))

    assert int(half["mlp"].sum()) == 640 * 32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gamma(0.0), r"gamma must be in \(0, 1\], got 0"),
        (lambda: Gamma(1.1), r"gamma must be in \(0, 1\], got 1.1"),
        (lambda: Epsilon(0.0), r"epsilon must be in \(0, 1\], got 0"),
        (lambda: Epsilon(1.5), r"epsilon must be in \(0, 1\], got 1.5"),
        (lambda: Rank(-1), "rank must not be negative, got -1"),
        (lambda: Threshold(-0.5), "threshold must not be negative, got -0.5"),
        (lambda: Gamma(math.nan), "a number, got nan"),
        (lambda: Gamma(0.5, min_rank=-1), "min_rank must be an integer from 0 up"),
        (lambda: Gamma(0.5, multiple_of=0), "multiple_of must be an integer from 1 up"),
        (
            lambda: Gamma(0.5, max_rank=1, min_rank=2),
            r"max_rank .* 2",
        ),
        (lambda: Gamma(0.5, max_rank=2, multiple_of=4), r"max_rank .* 4"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Rank(2.5), r"rank 2.5: a budget of 7.5 ranks is above the parent's 6"),
        (Params(85), r"params 85: a budget of 85 params is above the parent's 84"),
        (Bytes(337), r"a budget of 337 bytes is above the parent's 336"),
        (
            Params(13),
            r"params 13: a budget of 13 params is below one rank, .* least 14",
        ),
        (Bytes(55), r"below one rank, which takes at least 56"),
        (Rank(0.3), r"a budget of 0.9 ranks is below one rank"),
        (Gamma(0.5, min_rank=2), r"min_rank 2 for 3 modules takes 6, the budget is 3"),
        (
            Params(40, min_rank=1),
            r"min_rank 1 for 3 modules takes 42, the budget is 40",
        ),
        (Params(-1), r"-1"),
    ],
    ids=lambda x: x.name if isinstance(x, para_jax.Policy) else "",
)
@pytest.mark.parametrize("choose", [para_jax.masks, para_jax.ranks])
def test_budgets_that_this_parent_cannot_meet_are_refused(choose, policy, message):
    with pytest.raises(ValueError, match=message):
        choose(spectra_of(POOL), policy)


def test_the_numbers_of_numpy_are_numbers():
    spectra = spectra_of(POOL)

    for one in (np.int64(1), np.float32(1), np.float64(1)):
        got = kept_ranks(spectra, Rank(one))
        assert list(got.values()) == [2, 1, 0]


def test_an_empty_model_is_refused():
    with pytest.raises(ValueError, match="no adapter to choose from"):
        para_jax.masks({}, Gamma(0.5))


def test_a_budget_of_less_than_one_rank_keeps_one_and_warns():
    with pytest.warns(UserWarning, match="gamma 0.1 of 6 ranks is less than one"):
        got = para_jax.ranks(spectra_of(POOL), Gamma(0.1))

    assert {path: int(rank) for path, rank in got.items()} == {"a": 1, "b": 0, "c": 0}


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (Gamma(0.25), "gamma 0.25"),
        (Rank(4, scope="local"), "rank 4 local"),
        (Params(1_000_000), "params 1000000"),
        (Epsilon(0.99, min_rank=1, max_rank=8), "epsilon 0.99 min 1 max 8"),
        (Bytes(5, multiple_of=4), "bytes 5 multiple 4"),
    ],
)
def test_the_name_of_a_policy_says_what_was_asked(policy, name):
    assert policy.name == name
