"""The display of a run: its progress, its losses, its results."""

import contextlib
import datetime as dt
import time
from collections.abc import Iterator, Sequence

import numpy as np
import rich.console
import rich.progress
import rich.table

from train.commands import output
from train.runs.fit import Line, OnSteps

_SMOOTHED = 100
"""Steps in a shown mean."""
_PAUSE = 30.0
"""Seconds between two lines without a terminal, so that logs stay short."""


@contextlib.contextmanager
def shown(console: rich.console.Console, steps: int) -> Iterator[OnSteps]:
    """Yield a callback to show progress: a bar in a terminal, else occasional lines.

    Args:
      console: The console to print to.
      steps: The number of steps of the run.
    """
    recent: list[Line] = []
    with contextlib.ExitStack() as stack:
        show = _plain(console, steps)
        # Without a terminal, a bar would fill the log.
        if console.is_terminal:
            show = _bar(stack.enter_context(_columns(console)), steps)

        def on_steps(step: int, lines: Sequence[Line]) -> None:
            if step and not lines:
                output.say(console, f"Goes on from step {step}.")
            recent.extend(lines)
            del recent[:-_SMOOTHED]
            show(step, recent)

        yield on_steps


def _columns(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("left"),
        console=console,
        transient=True,
    )


def _bar(bar: rich.progress.Progress, steps: int) -> OnSteps:
    task = bar.add_task("reading", total=steps)

    def on_steps(step: int, lines: Sequence[Line]) -> None:
        state = _state(lines) or "compiling"
        what = "evaluating" if step == steps else state
        bar.update(task, completed=step, description=what)

    return on_steps


def _plain(console: rich.console.Console, steps: int) -> OnSteps:
    began: list[tuple[int, float]] = []
    last = time.monotonic()

    def on_steps(step: int, lines: Sequence[Line]) -> None:
        nonlocal last
        now = time.monotonic()
        if len(began) < 2:  # The first steps include compilation.
            began.append((step, now))
        # The second entry, once there is one: it is past the compilation.
        first, start = began[-1]
        if lines and (step == steps or now - last > _PAUSE):
            left = ", evaluating" if step == steps else ""
            if first < step < steps:
                seconds = (steps - step) * (now - start) / (step - first)
                left = f", {dt.timedelta(seconds=round(seconds))} left"
            output.say(console, f"step {step} of {steps}: {_state(lines)}{left}")
            last = now

    return on_steps


def _state(lines: Sequence[Line]) -> str:
    """Return the means over steps and members, without nulls."""
    if not lines:
        return ""
    loss, accuracy = (
        # Diverged members have null in their lines.
        np.array([x for line in lines for x in line[name] if x is not None])
        for name in ("loss", "accuracy")
    )
    speed = lines[-1]["examples_per_second"]
    means = (
        f"loss {loss.mean():.3f}, accuracy {accuracy.mean():.1%}" if len(loss) else ""
    )
    return f"{means}, {speed:,.0f} examples/s"


def table(rows: Sequence[Line], title: str) -> rich.table.Table:
    """Return a table of the results, a row a member."""
    result = output.table(title)
    for name in ("seed", "learning\nrate", "ranks", "parameters", "validation", "test"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        size = [row["rank_total"], row["params"]]
        result.add_row(
            str(row["seed"]),
            f"{row['learning_rate']:g}",
            *("" if x is None else f"{x:,}" for x in size),
            "diverged" if row["validation"] is None else f"{row['validation']:.2%}",
            "" if row["test"] is None else f"{row['test']:.2%}",
        )
    return result
