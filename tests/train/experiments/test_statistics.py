import math

import numpy as np
import pytest
from scipy import stats

from train.experiments import statistics


def samples(n):
    generator = np.random.default_rng(n)
    left, right = generator.normal(size=(2, n))
    return left + 1, right


@pytest.mark.parametrize("n", [2, 3, 5, 11])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_the_interval_is_that_of_a_paired_t_test(n, confidence):
    left, right = samples(n)

    got = statistics.paired(
        dict(enumerate(left)), dict(enumerate(right)), confidence=confidence
    )

    test = stats.ttest_rel(left, right)
    low, high = test.confidence_interval(confidence)
    assert (got.mean - got.half, got.mean + got.half) == pytest.approx((low, high))
    assert bool(got.side) == (test.pvalue < 1 - confidence)
    assert got.seeds == n


def test_an_interval_by_hand():
    # Differences 1, 2, 3: mean 2, std 1, and t of 2 degrees of freedom is 4.3027.
    left, right = {0: 2.0, 1: 4.0, 2: 6.0}, {2: 3.0, 0: 1.0, 1: 2.0}

    got = statistics.paired(left, right)

    assert got.mean == 2.0
    assert got.half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert got.side == 0


@pytest.mark.parametrize(("shift", "side"), [(3.0, 1), (-3.0, -1)])
def test_an_interval_that_leaves_zero_out_says_on_which_side(shift, side):
    left = {0: shift, 1: shift + 0.1, 2: shift - 0.1}

    assert statistics.paired(left, dict.fromkeys(left, 0.0)).side == side


def test_only_seeds_of_both_are_paired():
    got = statistics.paired({0: 1.0, 1: 5.0, 7: 9.0}, {1: 3.0, 7: 6.0, 8: 100.0})

    assert got.mean == 2.5
    assert got.seeds == 2


def test_one_seed_leaves_zero_in():
    got = statistics.paired({0: 1.0}, {0: 0.0})

    assert (got.mean, got.half, got.side) == (1.0, math.inf, 0)


def test_no_common_seed_is_an_error():
    with pytest.raises(ValueError, match=r"without a common seed .* 0, 1; 2"):
        statistics.paired({1: 1.0, 0: 1.0}, {2: 1.0})


def test_mean_and_sample_standard_deviation_by_hand():
    sample = {0: 1.0, 1: 2.0, 2: 6.0}

    assert statistics.mean(sample) == 3.0
    assert statistics.std(sample) == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / 2.
    assert math.isnan(statistics.std({0: 1.0}))


def test_the_average_of_samples_is_by_seed():
    got = statistics.average([{0: 1.0, 1: 2.0, 2: 9.0}, {1: 4.0, 0: 3.0}])

    assert got == {0: 2.0, 1: 3.0}
