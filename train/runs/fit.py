"""A run from its settings to a complete folder, resumable after an interruption.

On one device, a killed and resumed run gives the same numbers, bit for bit: its state,
its batches and its compiled program are the same. On a GPU the program is the same only
with XLA's flag xla_gpu_deterministic_ops, which the command sets. Runs on the host.
"""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train import subjects
from train.runs import checkpoints, folder, outcome, records, settings as runs, trainer

EVERY = 500
"""Steps between two checkpoints."""

_CHUNK = 10
"""Steps of one call on a CPU; its steps are slow, and a call costs little."""

Line = dict[str, Any]
OnSteps = Callable[[int, Sequence[Line]], object]
"""Called with the number of done steps, and the lines of the last; first with none."""


def fit(
    run: runs.Run,
    place: pathlib.Path,
    config: folder.Settings,
    *,
    folders: subjects.Folders = subjects.ANYWHERE,
    every: int = EVERY,
    on_steps: OnSteps = lambda step, lines: None,
) -> list[Line]:
    """Train a run, or resume it, and return its results, a row a member.

    Args:
      run: The settings.
      place: The run's folder.
      config: The contents of its config.json; see `train.runs.folder.opened`.
      folders: The folders of models and data sets of the hub.
      every: Steps between two checkpoints.
      on_steps: Called at the start, and after every few steps.

    Raises:
      FloatingPointError: if all members diverged.
      OSError: if the folder cannot be used.
      ValueError: if a setting is impossible, or the folder is another run's.
    """
    # All checks come before the lock: an impossible run leaves no folder.
    run.check()
    run.method.method(run.steps)  # It may be impossible, too.
    folder.check(place, config["run"])
    if (rows := folder.results(place)) is not None:
        return rows
    subject = subjects.load(run, folders)
    given = runs.inputs(run, subject.model, subject.base, subject.data)
    with folder.opened(place, config):
        learners, lost = _trained(given, place, every, on_steps)
        members = outcome.trained(given, learners, lost, subject.peft)
        # Adapters first, results last: with the results the folder counts as complete.
        outcome.save(members, place / folder.PARENT)
        rows = outcome.rows(members, subject)
        for row, step in zip(rows, lost, strict=True):
            row["diverged_at"] = step
        folder.write(place / folder.RESULTS, {"rows": rows})
        return rows


def _trained(
    given: runs.Inputs, place: pathlib.Path, every: int, on_steps: OnSteps
) -> tuple[trainer.Learner, list[int | None]]:
    """Return the members after the last step, and the step of each divergence."""
    members, lines = given.run.members, place / folder.METRICS
    with checkpoints.opened(place / folder.CHECKPOINTS) as saved:
        step, learners = _begun(given, saved)
        # Steps after the checkpoint are computed again: their records would be double.
        seen = records.cut_back(lines, step)
        lost = records.diverged(seen, len(members))
        on_steps(step, [])
        chunk = _CHUNK if jax.default_backend() == "cpu" else runs.CHUNK
        start = time.monotonic()
        for progress in runs.advance(given, learners, step, chunk=chunk):
            learners, after = progress.learners, progress.step
            metrics = jax.device_get(progress.metrics)  # Waits for the steps.
            new = _lines(given, metrics, step, time.monotonic() - start)
            records.append(lines, new)
            now = records.diverged(new, len(members))
            # The first divergence stays: later steps of a lost member mean nothing.
            lost = [x or y for x, y in zip(lost, now, strict=True)]
            # Members are independent: a run goes on while one of them is well.
            _check_alive(members, lost, new)
            if _is_due(step, after, given.run.steps, every):
                checkpoints.save(saved, after, learners)
            on_steps(after, new)
            step, start = after, time.monotonic()
    return learners, lost


def _begun(given: runs.Inputs, saved: Any) -> tuple[int, trainer.Learner]:
    """Return the newest checkpoint, or the start."""
    # Shapes only, to restore into.
    like = jax.eval_shape(lambda: runs.begin(given))
    found = checkpoints.restore(saved, like)
    return found if found is not None else (0, runs.begin(given))


def _lines(
    given: runs.Inputs, metrics: trainer.Metrics, before: int, seconds: float
) -> list[Line]:
    members, count = metrics.loss.shape
    steps = jnp.arange(before, before + count)
    rates = given.trainer.schedule(given.rates[:, None])(steps[None])
    return records.lines(
        metrics,
        np.asarray(rates),
        first=before + 1,
        examples_per_second=members * count * given.run.batch / seconds,
    )


def _is_due(before: int, step: int, steps: int, every: int) -> bool:
    # Checkpoints fall between calls, at the first call past each multiple.
    return step == steps or step // every > before // every


def _check_alive(
    members: Sequence[tuple[int, float]],
    lost: Sequence[int | None],
    new: Sequence[Line],
) -> None:
    """Raise FloatingPointError if every member has diverged."""
    steps = [x for x in lost if x is not None]
    if len(steps) < len(members):
        return
    step = max(steps)
    member = lost.index(step)
    seed, rate = members[member]
    line = next(x for x in new if x["step"] == step)
    loss, norm = (
        "not finite" if (x := line[name][member]) is None else f"{x:.4g}"
        for name in ("loss", "norm")
    )
    who = f"seed {seed}" if len(members) == 1 else f"the last of {len(members)} members"
    raise FloatingPointError(
        f"Training diverged ({who}): at step {step} the loss is {loss} and the norm of "
        f"the gradient {norm}, with a learning rate of {rate:g}. Lower it with "
        "--learning-rates, or raise --warmup."
    )
