"""Test budgets and energies that are whole in decimals, but not in binary.

The oracle is exact fractions. Every budget in hundredths is tried: 0.29 * 100 is below
29 in float64, and a bare floor would lose a rank.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax
from para_jax import Bytes, Epsilon, Gamma, Params, Rank

MODULES, COST, ITEMSIZE = 100, 5 + 2, 4
PRECISIONS = [
    pytest.param("float64"),
    pytest.param("float32", marks=pytest.mark.user_defaults),
]
HUNDREDTHS = [Fraction(i, 100) for i in range(1, 101)]
# The cost of one of a hundred ranks, in the unit of each policy's value.
PRICES = {
    Gamma: Fraction(1, MODULES),
    Rank: Fraction(1, MODULES),
    Params: Fraction(COST),
    Bytes: Fraction(COST * ITEMSIZE),
}


def spectra_of(s, shape=(5, 2)):
    """Return the spectrum of a stack of kernels; its factors are never read."""
    s = np.asarray(s, np.float64)
    k = s.shape[-1]
    spectrum = para_jax.Spectrum(
        s=s,
        left=np.zeros((*s.shape[:-1], k, k)),
        right=np.zeros((*s.shape[:-1], k, k)),
        shape=shape,
        dtype="float32",
        nominal=k,
    )
    return {"mlp": spectrum}


def values_of(kind):
    """Return each hundredth of the parent as a user would compute it, in floats."""
    whole = float(PRICES[kind] * MODULES)
    return [float(share) * whole for share in HUNDREDTHS]


@pytest.mark.parametrize("kind", PRICES, ids=lambda x: x.__name__)
def test_every_hundredth_of_a_parent_buys_as_many_of_its_hundred_ranks(kind):
    spectra = spectra_of(np.linspace(2, 1, MODULES)[:, None])
    values = values_of(kind)
    bare = [int(Fraction(x) / PRICES[kind]) for x in values]
    assert bare != [*range(1, 101)]  # The floor of the stored float loses some.

    kept = [int(para_jax.ranks(spectra, kind(x))["mlp"].sum()) for x in values]

    assert kept == [*range(1, 101)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", [Gamma, Rank], ids=lambda x: x.__name__)
def test_a_traced_hundredth_buys_as_many_ranks_as_a_known_one(kind, precision):
    spectra = spectra_of(np.linspace(2, 1, MODULES)[:, None])
    values = jnp.asarray(np.asarray(values_of(kind), precision))

    masks = jax.jit(jax.vmap(para_jax.masks, (None, 0)))(spectra, kind(values))

    np.testing.assert_array_equal(masks["mlp"].sum((1, 2)), np.arange(1, 101))


def test_a_budget_in_hundredths_of_one_rank_is_that_of_fractions():
    """Use seven modules of three ranks; most hundredths do not divide evenly."""
    spectra = spectra_of(np.linspace(3, 1, 21).reshape(3, 7).T)
    some = [share * 3 for share in HUNDREDTHS if share * 3 * 7 >= 1]

    kept = [int(para_jax.ranks(spectra, Rank(float(x)))["mlp"].sum()) for x in some]

    assert kept == [int(x * 7) for x in some]


@pytest.mark.parametrize(
    ("largest", "ones"), [(2, 1), (3, 1), (5, 3), (4, 7), (9, 1), (11, 2)]
)
def test_a_known_energy_that_equals_its_share_is_enough(largest, ones):
    """The share, once rounded, may be less than the dropped part."""
    epsilon = Epsilon(largest**2 / (largest**2 + ones))

    kept = para_jax.ranks(spectra_of([float(largest)] + [1.0] * ones), epsilon)

    assert int(kept["mlp"]) == 1


@pytest.mark.parametrize("short", [False, True], ids=["equal", "short of it"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("large", "ones"), [(57, 32), (11, 1), (38, 16)])
def test_of_2001_components_an_energy_that_equals_its_share_is_enough(
    large, ones, precision, short
):
    """At epsilon 0.999995 or so. All sums of squares are exact in float32."""
    total = ones + large**2 * (2001 - ones)
    assert total < 2**24
    share = Fraction(total - ones, total) + Fraction(int(short), 2 * total)
    epsilon = float(share)
    if Fraction(epsilon) > share:  # No more than is there is asked for.
        epsilon = float(np.nextafter(epsilon, 0))
    spectra = spectra_of([float(large)] * (2001 - ones) + [1.0] * ones)
    want = 2001 if short else 2001 - ones

    known = para_jax.ranks(spectra, Epsilon(epsilon))
    masks = jax.jit(lambda x: para_jax.masks(x, Epsilon(epsilon)))(spectra)

    assert jax.config.jax_enable_x64 == (precision == "float64")
    assert int(known["mlp"]) == want
    assert int(masks["mlp"].sum()) == want
