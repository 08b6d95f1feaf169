import pytest

from train.methods import schedule

EQUAL = {"t_init": 500, "t_final": 500, "delta_t": 500}


@pytest.mark.parametrize("steps", [2000, 3000, 10_000])
def test_periods_that_leave_time_for_two_prunings_stay(steps):
    assert schedule.fit(steps, **EQUAL) == (500, 500, 500, "")


@pytest.mark.parametrize(
    ("steps", "period"), [(1999, 333), (1000, 166), (500, 83), (7, 1), (6, 1)]
)
def test_equal_periods_that_do_not_fit_become_a_sixth_of_the_run(steps, period):
    got = schedule.fit(steps, **EQUAL)

    assert got[:3] == (period, period, period)
    assert got.note == (
        f"t_init/t_final/delta_t of 500/500/500 do not fit into {steps} steps: "
        f"shrunk in proportion to {period}/{period}/{period}."
    )


def test_unequal_periods_keep_their_proportion():
    got = schedule.fit(600, t_init=200, t_final=400, delta_t=10)

    assert got[:3] == (50, 100, 2)


def test_a_period_that_shrinks_away_becomes_one_step():
    assert schedule.fit(12, t_init=0, t_final=1, delta_t=500)[:3] == (0, 1, 2)
    assert schedule.fit(12, t_init=500, t_final=1, delta_t=1)[:3] == (2, 1, 1)


@pytest.mark.parametrize(("steps", "length"), [(2000, 500), (1999, 333), (500, 83)])
def test_a_warmup_ends_where_the_others_start_to_prune(steps, length):
    got = schedule.warmup(steps, 500)

    assert got.t_init == length == schedule.fit(steps, **EQUAL).t_init
    assert bool(got.note) == (length < 500)


def test_a_shrunk_warmup_is_said():
    assert schedule.warmup(600, 500).note == (
        "A warmup of 500 does not fit into 600 steps: shrunk to 100."
    )


def test_no_warmup_is_one():
    assert schedule.warmup(6, 0) == (0, 0, 1, "")


def test_a_run_too_short_to_prune_is_refused():
    with pytest.raises(ValueError, match="steps is 5, expected at least 6"):
        schedule.fit(5, **EQUAL)


@pytest.mark.parametrize(
    "wrong", [{"t_init": -1}, {"t_final": 0}, {"delta_t": 0}, {"delta_t": -500}]
)
def test_an_impossible_period_is_refused(wrong):
    with pytest.raises(ValueError, match="expected at least 0, 1 and 1"):
        schedule.fit(3000, **(EQUAL | wrong))


def test_a_negative_warmup_is_refused():
    with pytest.raises(ValueError, match="warmup is -1"):
        schedule.warmup(3000, -1)


@pytest.mark.parametrize(
    ("rank", "target", "match"),
    [
        (0, 1.0, "rank is 0, expected at least 1"),
        (4, 5, "target is 5, expected more than 0 and at most the rank, 4"),
        (4, 0.0, "target is 0.0"),
        (4, -1.0, "target is -1.0"),
        (4, float("nan"), "target is nan"),
    ],
)
def test_an_impossible_target_is_refused(rank, target, match):
    with pytest.raises(ValueError, match=match):
        schedule.check(rank, target)
