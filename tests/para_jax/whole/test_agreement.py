"""Test that the ranks are NumPy's in float64, for every way to compute them."""

import pytest

from tests.benchmarks import agreement

# Below this gap, relative to a module's largest singular value, it is a tie.
CLOSE = {"float32": 1e-6, "float64": 1e-12, "host": 1e-12}


@pytest.mark.parametrize("structure", agreement.STRUCTURES[3:5])
@pytest.mark.slow
def test_random_adapters_are_cut_as_numpy_cuts_them(structure):
    choices = [
        choice
        for name, adapters in agreement.random_adapters(10, [structure])
        for choice in agreement.compared(name, adapters)
    ]

    assert len(choices) == 10 * 7 * len(agreement.WAYS)
    for choice in choices:
        assert choice.moved == 0 or choice.gap < CLOSE[choice.way], choice
    assert sum(x.gap > CLOSE[x.way] for x in choices) > 0.9 * len(choices)
