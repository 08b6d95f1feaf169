"""Pruning schedules of methods with dynamic rank: three periods, fitted to a run.

Components go between step `t_init` and `t_final` steps before the end, about every
`delta_t` steps. The published settings are made for long runs; a run that is too short
for them gets periods in the same proportion, and `Schedule.note` says so. Runs on the
host.
"""

from typing import NamedTuple

_PARTS = 6  # Of a run that its periods were shrunk to, the longest takes one.


class Schedule(NamedTuple):
    """The periods of one run.

    Attributes:
      t_init: The number of steps before the first component goes.
      t_final: The number of steps after the last has gone.
      delta_t: The steps between two prunings.
      note: The change made to fit the run, in a sentence; empty if there is none.
    """

    t_init: int
    t_final: int
    delta_t: int
    note: str = ""


def fit(steps: int, *, t_init: int, t_final: int, delta_t: int) -> Schedule:
    """Return the periods, shrunk in proportion if they are too long for the run.

    They fit if two prunings lie between the first and the last period:
    `t_init + t_final + 2 * delta_t <= steps`. Otherwise the longest becomes a sixth of
    the run.

    Raises:
      ValueError: if a period is impossible, or the run has fewer than six steps.
    """
    if t_init < 0 or t_final < 1 or delta_t < 1:
        raise ValueError(
            f"t_init={t_init}, t_final={t_final}, delta_t={delta_t}: expected at least "
            "0, 1 and 1 steps."
        )
    if steps < _PARTS:
        raise ValueError(
            f"steps is {steps}, expected at least {_PARTS}: a shorter run leaves no "
            "time to take components out."
        )
    if t_init + t_final + 2 * delta_t <= steps:
        return Schedule(t_init, t_final, delta_t)
    before, longest = (t_init, t_final, delta_t), max(t_init, t_final, delta_t)
    first, last, between = (x * (steps // _PARTS) // longest for x in before)
    after = (first, max(last, 1), max(between, 1))
    return Schedule(*after, note=_note(steps, before, after))


def _note(steps: int, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    was, now = ("/".join(map(str, periods)) for periods in (before, after))
    return (
        f"t_init/t_final/delta_t of {was} do not fit into {steps} steps: "
        f"shrunk in proportion to {now}."
    )


def warmup(steps: int, length: int) -> Schedule:
    """Return a schedule with pruning at every step after the first `length` steps.

    It is shrunk as the `t_init` of `fit` is when all three periods are equal, so that
    methods of one setting begin to take out at one step.

    Raises:
      ValueError: if the length is negative, or the run has fewer than six steps.
    """
    if length < 0:
        raise ValueError(f"warmup is {length}, expected at least 0 steps.")
    period = max(length, 1)
    fitted = fit(steps, t_init=length, t_final=period, delta_t=period)
    note = (
        f"A warmup of {length} does not fit into {steps} steps: "
        f"shrunk to {fitted.t_init}."
    )
    return Schedule(fitted.t_init, 0, 1, note if fitted.note else "")


def check(rank: int, target: float) -> None:
    """Raise unless the target is reachable.

    Raises:
      ValueError: if the rank is not positive, or the target not in `(0, rank]`.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1.")
    if not 0 < target <= rank:
        raise ValueError(
            f"target is {target}, expected more than 0 and at most the rank, {rank}."
        )
