"""The cost of a step by each method: time, and memory, of one member.

The memory is the compiled program's peak by XLA's own account, including the frozen
base and the data; the time is the best of some calls of the program.
"""

import dataclasses
import time
from typing import Any

import jax

from train.experiments.rows import Cost
from train.grid import plan, training
from train.runs import settings as runs, trainer

_CALLS = 4


def measure(place: training.Place, entry: plan.Entry, steps: int = 50) -> Cost:
    """Measure the cost of one step of one method.

    Args:
      place: The task with its settings.
      entry: The method.
      steps: The number of steps of the timed program, if a run has as many.
    """
    settings = place.plan.search(place.task, entry.config, place.settings)
    # One member: several share the reads of the base, and a step looks cheaper.
    settings = dataclasses.replace(
        settings, seeds=(0,), learning_rates=place.plan.rates[:1]
    )
    subject = place.subject
    given = runs.inputs(settings, subject.model, subject.base, subject.data)
    learners = runs.begin(given)
    data, rows = next(runs.chunks(given, 0, steps, steps))
    operands = given.trainer, learners, given.rates, given.base, data, rows
    # Compiled ahead, so that no call is timed with compilation.
    program = trainer.advance.lower(*operands).compile()
    times = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        # The learners are donated, so each call takes those of the last.
        learners, metrics = program(learners, *operands[2:])
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    return Cost(
        method=entry.method,
        policy=f"rank {entry.config.target:g}",
        # The minimum: other processes only ever add time.
        step_seconds=min(times) / rows.shape[1],
        peak_bytes=_held(program),
    )


def _held(program: Any) -> int | None:
    """Return the peak bytes of a compiled program, if known."""
    found = program.memory_analysis()
    if found is None:
        return None
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        # Donated arguments are counted twice otherwise.
        - found.alias_size_in_bytes
    )
