import io

import pytest
import rich.console

from train.commands import progress


@pytest.fixture
def console():
    return rich.console.Console(file=io.StringIO(), width=80)


def lines(first, losses, members=2):
    """Return lines of steps; members differ by 1 in loss and 0.2 in accuracy."""
    return [
        {
            "step": first + i,
            "loss": [loss + 1.0 * member for member in range(members)],
            "accuracy": [0.5 + 0.2 * member for member in range(members)],
            "examples_per_second": 1234.5,
        }
        for i, loss in enumerate(losses)
    ]


def shown(console, steps, *calls):
    with progress.shown(console, steps) as on_steps:
        for step, new in calls:
            on_steps(step, new)
    return console.file.getvalue()


def test_without_a_terminal_there_is_a_line_now_and_then(console, monkeypatch):
    monkeypatch.setattr(progress, "_PAUSE", -1.0)
    moments = iter([0.0, 0.0, 5.0, 9.0, 13.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))

    got = shown(
        console,
        30,
        (0, []),
        (10, lines(1, [1.0] * 10)),
        (20, lines(11, [0.5] * 10)),
        (30, lines(21, [0.0] * 10)),
    )

    # Means over 2 members and all steps; 4 s were for 10 steps, without the first ones.
    assert got.splitlines() == [
        "step 10 of 30: loss 1.500, accuracy 60.0%, 1,234 examples/s",
        "step 20 of 30: loss 1.250, accuracy 60.0%, 1,234 examples/s, 0:00:04 left",
        "step 30 of 30: loss 1.000, accuracy 60.0%, 1,234 examples/s, evaluating",
    ]


def test_lines_are_few(console):
    calls = [(10 * i, lines(10 * i - 9, [1.0] * 10)) for i in range(1, 6)]

    got = shown(console, 50, (0, []), *calls)

    assert len(got.splitlines()) == 1


def test_means_are_over_the_last_hundred_steps_and_what_is_finite(console):
    late = lines(101, [3.0] * 100)
    for line in late:
        line["loss"][1] = line["accuracy"][1] = None

    got = shown(console, 200, (0, []), (100, lines(1, [9.0] * 100)), (200, late))

    assert "loss 3.000, accuracy 50.0%" in got


def test_a_terminal_has_a_bar():
    console = rich.console.Console(
        file=io.StringIO(), width=100, force_terminal=True, color_system=None
    )

    got = shown(console, 30, (0, []), (10, lines(1, [1.0] * 10)))

    assert "10/30 loss 1.500, accuracy 60.0%, 1,234 examples/s" in got
    assert "left" in got


def test_a_run_that_goes_on_says_so(console):
    got = shown(console, 30, (20, []), (30, lines(21, [1.0] * 10)))

    assert got.startswith("Goes on from step 20.\nstep 30 of 30: ")


def test_the_table_has_a_row_a_member_and_fits(console):
    rows = [
        {
            "seed": 3,
            "learning_rate": 1e-4,
            "rank_total": 576,
            "params": 1234567,
            "validation": 0.81234,
            "test": 0.8,
        },
        {
            "seed": 4,
            "learning_rate": 0.1,
            "rank_total": None,
            "params": None,
            "validation": None,
            "test": None,
        },
    ]

    console.print(progress.table(rows, title="lora"))

    got = [x.split() for x in console.file.getvalue().splitlines()[-2:]]
    assert got == [
        ["3", "0.0001", "576", "1,234,567", "81.23%", "80.00%"],
        ["4", "0.1", "diverged"],
    ]
    assert max(map(len, console.file.getvalue().splitlines())) <= 80
